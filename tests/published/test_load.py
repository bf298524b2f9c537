"""Loading the original code's weights: what is refused, by name, and the corners that the goldens leave out."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vix
from tests.published.goldens import golden
from vix import published
from vix.published import ORIGINALS


def parts(system: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return dict(golden(system).arguments), dict(golden(system).state)


def test_a_missing_weight_is_named() -> None:
    arguments, state = parts("ViP")
    del state["transformer.layers.1.0.fn.to_k.bias"]
    with pytest.raises(ValueError, match=r"ViP .* misses transformer\.layers\.1\.0\.fn\.to_k\.bias$"):
        published.load("ViP", arguments, state)


def test_a_weight_left_over_is_named() -> None:
    arguments, state = parts("pip_ViN")
    state["temperature"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"pip_ViN .* has no place for temperature$"):
        published.load("pip_ViN", arguments, state)


def test_a_weight_of_another_shape_is_named_with_both_shapes() -> None:
    arguments, state = parts("ViL")
    state["transformer.layers.0.0.fn.proj_k"] = torch.zeros(65, 64)
    with pytest.raises(ValueError, match=r"needs \(1025, 64\) of transformer\.layers\.0\.0\.fn\.proj_k \(65, 64\)"):
        published.load("ViL", arguments, state)


def test_only_an_unused_table_is_dropped() -> None:
    arguments, state = parts("ViT")
    state["layer_pos_emb.emb"] = torch.zeros(1025, 8)
    with pytest.raises(ValueError, match=r"has no place for layer_pos_emb\.emb"):
        published.load("ViT", arguments, state)


def test_weights_that_are_no_numbers_are_refused() -> None:
    arguments, state = parts("FNet2D")
    state["pool.2.weight"] = state["pool.2.weight"].long()
    with pytest.raises(ValueError, match=r"pool\.2\.weight cannot be torch\.int64"):
        published.load("FNet2D", arguments, state)


def test_an_empty_state_dict_misses_everything() -> None:
    with pytest.raises(ValueError, match=r"misses .* and 24 more"):
        published.load("ViT", golden("ViT").arguments, {})


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("ViM", {}, "no published system is called 'ViM': there are ViT, ViL"),
        ("ViT", {"landmarks": 3}, "ViT takes no landmarks=3: it takes image_size"),
        ("HybridViT", {"patch_size": 2}, "the published HybridViT can be loaded with patch_size=1 only, got 2"),
        ("ViPRoPE", {"rotary_position_emb": False}, "can be loaded with rotary_position_emb=True only, got False"),
    ],
)
def test_a_wrong_argument_is_named(system: str, change: dict[str, Any], message: str) -> None:
    arguments = golden(system if system in ORIGINALS else "ViT").arguments | change
    with pytest.raises(ValueError, match=message):
        published.load(system, arguments, {})


def test_a_forgotten_argument_is_named() -> None:
    arguments, state = parts("ViT")
    del arguments["mlp_dim"]
    with pytest.raises(ValueError, match=r"ViT needs mlp_dim$"):
        published.load("ViT", arguments, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_net_has_the_dtype_of_its_weights(dtype: torch.dtype) -> None:
    arguments, state = parts("FNet2D")
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    net = published.load("FNet2D", arguments, half)
    assert {value.dtype for value in net.state_dict().values()} == {dtype, torch.int64}


@torch.no_grad()
def test_the_output_that_one_wide_head_leaves_away_is_the_identity() -> None:
    arguments, state = parts("ViT")
    arguments |= {"heads": 1, "dim_head": 32}
    outputs = [key for key in state if ".to_out." in key]
    assert len(outputs) == 4
    with_identity = state | {key: torch.eye(32) if key.endswith("weight") else torch.zeros(32) for key in outputs}
    without = {key: value for key, value in state.items() if key not in outputs}
    images = golden("ViT").images
    expected = published.load("ViT", arguments | {"dim_head": 32}, without)(images)
    net = vix.ViT(dim=32, depth=2, heads=1, dim_head=32, mlp_dim=64, patch_size=1).double().eval()
    ours = published.load("ViT", arguments, without).state_dict()
    assert torch.equal(ours["blocks.1.mixer.output.weight"], torch.eye(32, dtype=torch.float64))
    net.load_state_dict(ours)
    torch.testing.assert_close(net(images), expected)
    # A file that holds identities nevertheless, as from another version of the code, gives the same.
    torch.testing.assert_close(published.load("ViT", arguments, with_identity)(images), expected)


@pytest.mark.parametrize("system", ["ViN", "ViNRoPE", "HybridViNRoPE"])
def test_three_models_have_four_heads_whatever_heads_says(system: str) -> None:
    arguments, state = parts(system)
    net = published.load(system, arguments | {"heads": 8}, state)
    assert net.spec["init_args"]["heads"] == 4


@torch.no_grad()
def test_the_mean_is_over_the_class_token_too() -> None:
    arguments, state = parts("pip_ViL")
    net = published.load("pip_ViL", arguments | {"pool": "mean"}, state)
    features = net.forward_features(golden("pip_ViL").images)
    assert features.shape[1] == 65
    pooled = torch.nn.functional.layer_norm(
        features.mean(dim=1), (32,), state["mlp_head.0.weight"], state["mlp_head.0.bias"]
    )
    expected = pooled @ state["mlp_head.1.weight"].mT + state["mlp_head.1.bias"]
    torch.testing.assert_close(net(golden("pip_ViL").images), expected)


@pytest.mark.parametrize("system", ["ViN", "ViP", "ViL", "ViT", "HybridViN", "pip_ViP"])
def test_dropout_acts_where_it_did(system: str) -> None:
    arguments, state = parts(system)
    net = published.load(system, arguments | {"dropout": 0.25}, state)
    block = net.blocks[0]  # type: ignore[index]
    assert block.mlp.dropout.p == 0.25
    assert block.mixer.dropout.p == (0.25 if system == "ViT" else 0)
    assert getattr(block.mixer.attention, "dropout", 0) == (0.25 if system == "ViL" else 0)


@pytest.mark.parametrize("system", list(ORIGINALS))
def test_a_loaded_net_can_be_built_again_from_its_spec(system: str) -> None:
    original = ORIGINALS[system]
    small = {"dim": 32, "final_dim": 32, "depth": 1, "image_size": 32, "patch_size": 1, "channels": 3, "mlp_dim": 8}
    given = {**original.script, **{key: value for key, value in small.items() if key in original.defaults}}
    net = original.net(**original.init_args(given))
    again = vix.build(net.spec)
    assert type(again) is type(net)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes

"""The ViT body, written out: what stands where, and what its own arguments change."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from tests import reference
from vix.backbones import VisionTransformer
from vix.layers import DropPath
from vix.mixers import FourierMixing, SelfAttention
from vix.tokens import Tokens

ATTENTION = partial(SelfAttention, heads=2, dim_head=8)


def body(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_size": (4, 6), "patch_size": 2, "num_classes": 3, "dim": 12, "depth": 2, "mlp_dim": 20}
    net = VisionTransformer(**{"mixer": ATTENTION, **sizes, **options}).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def written_out(net: VisionTransformer, images: Tensor) -> Tensor:
    """Dosovitskiy et al., arXiv:2010.11929, equations 1 to 4, from the net's weights."""
    weights = dict(net.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    patches = functional.unfold(images, 2, stride=2).mT.unflatten(-1, (3, 4)).mT.flatten(-2)
    x = linear(patches, "embedding.project")
    x = torch.cat([weights["class_token"].expand(len(x), 1, -1), x], dim=1) + weights["position.table"]
    for block in range(2):
        at = f"blocks.{block}"
        normed = norm(x, f"{at}.mixer_norm")
        of_mixer = (weights[f"{at}.mixer.{name}"] for name in ("project.weight", "output.weight", "output.bias"))
        x = x + reference.self_attention(normed, 2, *of_mixer)
        x = x + linear(reference.gelu(linear(norm(x, f"{at}.mlp_norm"), f"{at}.mlp.expand")), f"{at}.mlp.contract")
    return linear(norm(x[:, 0], "norm"), "head")


def test_the_net_is_its_equations() -> None:
    net, images = body(), torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    logits, expected = net(images), written_out(net, images)
    assert_close(logits, expected)
    given, cotangent = (images, *net.parameters()), torch.randn_like(logits)
    assert_close(torch.autograd.grad(logits, given, cotangent), torch.autograd.grad(expected, given, cotangent))


def test_training_computes_the_same_as_evaluation_without_rates() -> None:
    net, images = body(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = net(images)
    assert_close(net.train()(images), expected)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, Tokens((2, 3), 1)),
        ({"pool": "mean"}, Tokens((2, 3), 0)),
        ({"pool": "mean", "class_token": True}, Tokens((2, 3), 1)),
        ({"patch_size": (4, 3)}, Tokens((1, 2), 1)),
        ({"patch_size": None}, Tokens((4, 6), 1)),
        ({"patch_size": None, "image_size": 64, "pool": "mean"}, Tokens((32, 32), 0)),
    ],
)
def test_a_class_token_stands_where_it_is_pooled_or_asked_for(options: dict[str, Any], tokens: Tokens) -> None:
    net = body(mixer=FourierMixing, **options)
    assert net.tokens == tokens
    assert (net.class_token is not None) == bool(tokens.prefix)
    images = torch.randn(1, 3, *net.image_size, dtype=torch.float64)
    assert net.forward_features(images).shape == (1, tokens.count, 12)


@pytest.mark.parametrize("norm", ["pooled", "tokens"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_head_sees_the_pooled_vector_normalised_before_or_after(pool: Any, norm: Any) -> None:
    net, features = body(pool=pool, norm=norm, class_token=True), torch.randn(2, 7, 12, dtype=torch.float64)
    normed = net.norm(features) if norm == "tokens" else features
    pooled = normed[:, 0] if pool == "cls" else normed.mean(1)
    assert_close(net.forward_head(features), net.head(pooled if norm == "tokens" else net.norm(pooled)))


def test_a_pooled_class_token_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="pool='cls' needs a class token"):
        body(class_token=False)


@pytest.mark.parametrize(("depth", "rates"), [(1, [0.3]), (2, [0, 0.3]), (4, [0, 0.1, 0.2, 0.3])])
def test_drop_path_grows_from_nothing_at_the_first_block_to_its_rate_at_the_last(
    depth: int, rates: list[float]
) -> None:
    net = body(depth=depth, drop_path=0.3)
    assert [module.rate for module in net.modules() if isinstance(module, DropPath)] == pytest.approx(rates)


def test_positions_and_class_token_start_from_the_published_distribution() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(mixer=FourierMixing, dim=64, depth=1)
    assert net.position is not None
    assert net.position.table.shape == (1, 1025, 64)
    assert net.position.table.std().item() == pytest.approx(1, abs=0.02)
    assert net.class_token is not None
    assert net.class_token.std().item() == pytest.approx(1, abs=0.3)


def test_what_must_not_decay_is_the_class_token_and_the_positions() -> None:
    assert body().no_weight_decay() == {"class_token", "position.table"}
    assert body(position="none").no_weight_decay() == {"class_token"}
    assert body(position="none", pool="mean").no_weight_decay() == set()


def test_blocks_see_the_tokens_of_this_forward() -> None:
    seen = []

    class Looking(FourierMixing):
        def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
            seen.append(tokens)
            return super().forward(x, tokens)

    net = body(mixer=Looking, position="none")
    net(torch.randn(1, 3, 8, 2, dtype=torch.float64))
    assert seen == [Tokens((4, 1), prefix=1)] * 2

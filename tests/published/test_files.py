"""Reading `.pth` files of the original code: what shapes tell, what is assumed and said, and what is refused."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.published.goldens import GOLDENS, golden
from vix import published
from vix.spec import describe

# What the goldens' weights do not tell and the scripts did otherwise.
UNTOLD: dict[str, dict[str, Any]] = {"pip_ViN": {"num_landmarks": 16}}


def write(tmp_path: Path, content: object, name: str = "model.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def init_args(system: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Our arguments but those that change nothing in eval mode, or in a net that takes images of any size."""
    args: dict[str, Any] = describe(published.original(system).init_args(arguments))
    return {key: value for key, value in args.items() if "dropout" not in key}


@pytest.mark.parametrize("system", GOLDENS)
def test_the_shapes_of_a_file_tell_the_arguments(system: str, tmp_path: Path) -> None:
    file = published.read_file(write(tmp_path, golden(system).state), **UNTOLD.get(system, {}))
    assert file.system == system
    told, true = init_args(system, file.arguments), init_args(system, golden(system).arguments)
    # The shapes tell the number of random features, which the original computes from the width of a head.
    if "features" in true:
        true["features"] = int(true["dim_head"] * math.log(true["dim_head"]))
    assert told == true


@torch.no_grad()
def test_a_file_becomes_a_net_and_what_it_does_not_tell_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, golden("ViT").state)
    net = published.load_file(path)
    torch.testing.assert_close(net(golden("ViT").images), golden("ViT").logits)
    assert capsys.readouterr().out == (
        f"{path}: ViT; not in the file, so as in the authors' script: "
        "channels=3, image_size=32, heads=4, pool='cls', dropout=0.25, emb_dropout=0.0\n"
    )


def test_what_changes_nothing_is_not_called_assumed(tmp_path: Path) -> None:
    file = published.read_file(write(tmp_path, golden("HybridViNRoPE").state))
    assert file.assumed == {"image_size": 32, "pool": "cls", "num_landmarks": 64, "dropout": 0.5, "emb_dropout": 0.5}


def test_a_given_argument_is_not_assumed(tmp_path: Path) -> None:
    file = published.read_file(write(tmp_path, golden("ViT").state), dim_head=16, pool="mean")
    assert file.arguments["heads"] == 2
    assert file.arguments["pool"] == "mean"
    assert not {"heads", "dim_head", "pool"} & file.assumed.keys()


@pytest.mark.parametrize("system", ["ViTRoPE", "ViLRoPE"])
def test_a_table_of_rotations_tells_the_width_of_a_head(system: str, tmp_path: Path) -> None:
    state = golden(system).state | {"layer_pos_emb.emb": torch.zeros(1025, 16)}
    file = published.read_file(write(tmp_path, state))
    assert (file.arguments["heads"], file.arguments["dim_head"]) == (2, 16)


def test_one_wide_head_is_told_by_its_missing_output(tmp_path: Path) -> None:
    state = {key: value for key, value in golden("ViT").state.items() if ".to_out." not in key}
    net = published.load_file(write(tmp_path, state))
    assert net.spec["init_args"]["heads"] == 1


def with_patches(width: int, tokens: int = 64) -> dict[str, Tensor]:
    return golden("FNet").state | {
        "to_patch_embedding.1.weight": torch.zeros(32, width),
        "pos_embedding": torch.zeros(1, tokens + 1, 32),
    }


@pytest.mark.parametrize(
    ("width", "given", "channels", "patch"),
    [
        (12, {}, 3, 2),
        (12, {"channels": 12}, 12, 1),
        (1, {}, 1, 1),
        (7, {}, 7, 1),
        (6, {"patch_size": (1, 2)}, 3, (1, 2)),
    ],
)
def test_a_patch_tells_channels_and_sides_where_one_answer_fits(
    width: int, given: dict[str, Any], channels: int, patch: object, tmp_path: Path
) -> None:
    arguments = published.read_file(write(tmp_path, with_patches(width)), **given).arguments
    assert (arguments["channels"], arguments["patch_size"]) == (channels, patch)


@pytest.mark.parametrize(
    ("state", "given", "message"),
    [
        (with_patches(4), {}, "channels=1 with patch_size=2, channels=4 with patch_size=1.*give channels"),
        (with_patches(6), {"channels": 3}, "patches of 6 values are no squares of 3 channels: give patch_size"),
        (with_patches(6), {"patch_size": 2}, "patch_size=2x2 does not fit"),
        (with_patches(3, tokens=48), {}, r"48 tokens make no square: give image_size as a \(height, width\) pair"),
        (with_patches(3), {"image_size": (8, 9)}, "image_size=8x9 does not fit the weights, which are for 64 tokens"),
        (with_patches(3), {"dim": 64}, "dim=64 does not fit the weights, which have dim=32"),
        (with_patches(3), {"width": 64}, "FNet takes no width=64"),
        (golden("ViT").state, {"heads": 5}, "heads=5 does not divide the width 32 of all heads"),
        (golden("ViT").state, {"system": "ViP"}, "its weights are those of ViT, not of ViP"),
        (golden("ViT").state, {"system": "VIT"}, "no published system is called 'VIT'|not of VIT"),
        ({"fc.weight": torch.zeros(2, 2)}, {}, "fc.weight ... are weights of no model that can be loaded: ViT, ViL"),
        ({"cls_token": torch.zeros(1, 1, 8)}, {}, "mlp_head.1.weight is missing"),
        (golden("ViT").state | {"cls_token": torch.zeros(8)}, {}, r"cls_token has shape \(8,\)"),
        (golden("ViT").state | {"pos_embedding": torch.zeros(1, 1025, 8)}, {}, r"needs \(1, 1025, 32\)"),
    ],
)
def test_what_is_ambiguous_or_does_not_fit_is_an_error_that_says_what_to_give(
    state: dict[str, Tensor], given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, state)
    with pytest.raises(ValueError, match=message) as caught:
        published.load_file(path, **given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_an_image_that_is_no_square_can_be_given(tmp_path: Path) -> None:
    net = published.load_file(write(tmp_path, with_patches(3, tokens=48)), image_size=(6, 8))
    assert net.image_size == (6, 8)


def test_the_packages_fnet2d_reads_as_either_name(tmp_path: Path) -> None:
    path = write(tmp_path, golden("FNet2D").state)
    ours = published.read_file(path, "pip_FNet2D").arguments
    assert (ours["dim"], ours["mlp_dim"]) == (16, 32)
    assert published.read_file(path).system == "FNet2D"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never be heard",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Bomb()))
    for path in (write(tmp_path, {"cls_token": Bomb()}), plain):
        with pytest.raises(ValueError, match="holds more than weights, or is no file of them: it was not loaded"):
            published.load_file(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not the state dict"),
        ({}, "holds nothing"),
        ({"state_dict": {"a": torch.ones(1)}}, "'state_dict' is a dict"),
        ({0: torch.ones(1)}, "'0' is a Tensor"),
        ({"a": torch.ones(1).expand(10**9, 10**3)}, r"'a' claims \(1000000000, 1000\) and does not hold it"),
        ({"a": torch.ones(1, device="meta")}, "'a' is no plain tensor"),
    ],
)
def test_a_file_of_anything_else_is_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        published.load_file(write(tmp_path, content))


@pytest.mark.parametrize("damage", [slice(0), slice(100), slice(None, -300), "text"])
def test_a_damaged_file_is_refused(damage: slice | str, tmp_path: Path) -> None:
    path = write(tmp_path, {"cls_token": torch.ones(1, 1, 8)})
    path.write_bytes(b"no weights at all" if isinstance(damage, str) else path.read_bytes()[damage])
    with pytest.raises(ValueError, match=r"model\.pth (cannot be read as|holds more than)") as caught:
        published.load_file(path)
    assert "\n" not in str(caught.value)


def test_shapes_that_do_not_fit_together_take_no_memory(tmp_path: Path) -> None:
    # A megabyte of file that asks for a feed-forward network of 40 GB.
    state = golden("FNet").state | {"cls_token": torch.zeros(1, 1, 10**5)}
    state["transformer.layers.0.1.fn.net.0.weight"] = torch.zeros(10**5, 1)
    with pytest.raises(ValueError, match="needs"):
        published.load_file(write(tmp_path, state))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        published.load_file(tmp_path / "absent.pth")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_file_in_the_format_of_old_torch_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(golden("pip_FNet").state, path, _use_new_zipfile_serialization=False)
    assert published.read_file(path).system == "pip_FNet"

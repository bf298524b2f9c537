"""`main.py explain`: from a checkpoint and image files to pictures and numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vix
from main import main
from tests.nets import tiny
from vix.backbones import Backbone
from vix.commands.explain.pictures import overview, single_tokens
from vix.explain import explain


def checkpoint(net: Backbone, folder: Path) -> Path:
    """Writes what a training would have written of a net."""
    path = folder / "net.ckpt"
    about: dict[str, Any] = {
        "format": 1,
        "class_names": [f"class {number}" for number in range(net.num_classes)],
        "mean": [0.5] * net.channels,
        "std": [0.25] * net.channels,
        "image_size": list(net.image_size),
        "channels": net.channels,
    }
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"hyper_parameters": {"net": net.spec}, "vix": about, "state_dict": weights}, path)
    return path


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["FNet", "LeViN", "CvP"])
def test_an_image_becomes_two_pictures_and_its_numbers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, image, out = checkpoint(tiny(vix.SYSTEMS[name]), tmp_path), photograph(tmp_path / "cat.png"), tmp_path / "out"
    assert main(["explain", str(image), "--ckpt_path", str(run), "--out", str(out)]) == 0
    assert f"{name} on cat: class " in capsys.readouterr().out
    for picture in ("cat.png", "cat_tokens.png"):
        pixels = np.asarray(Image.open(out / picture))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 200
    numbers = json.loads((out / "cat.json").read_text())
    assert np.sum(numbers["rollout"]) == pytest.approx(1, abs=1e-2)
    assert all(
        np.shape(head["map"]) == tuple(layer["keys"]["grid"]) for layer in numbers["layers"] for head in layer["heads"]
    )


def test_a_column_has_its_title_where_it_begins_even_if_the_first_layer_has_fewer_heads() -> None:
    torch.manual_seed(0)
    found = explain(vix.CvP(image_size=16, num_classes=3).eval(), torch.randn(3, 16, 16))
    heads = [len(layer.mixing.heads) for layer in found.layers]
    assert heads[0] < max(heads)
    drawn = overview(found, torch.rand(3, 16, 16), "CvP", ["a", "b", "c"]).subfigs[1].axes
    titles = [axes.get_title() for axes in drawn if axes.get_title()]
    assert titles == ["all heads", *(f"head {number + 1}" for number in range(max(heads)))]
    assert all(axes.get_visible() for axes in drawn if axes.get_title())


def test_of_fourier_mixing_the_tokens_show_cosines_and_sines() -> None:
    found = explain(tiny(vix.FNet).eval(), torch.randn(3, 16, 16))
    titles = [axes.get_title() for axes in single_tokens(found, torch.rand(3, 16, 16), "FNet").axes]
    assert any(title.endswith("cosine") for title in titles)
    assert any(title.endswith("sine") and not title.endswith("cosine") for title in titles)


def test_files_of_one_name_are_kept_apart_and_a_broken_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = checkpoint(tiny(vix.ViP, depth=1, image_size=8), tmp_path)
    files = [photograph(tmp_path / folder / "a.png") for folder in ("one", "two")]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert (
        main(["explain", *map(str, files), str(broken), "--ckpt_path", str(run), "--out", str(tmp_path / "out")]) == 1
    )
    assert str(broken) in capsys.readouterr().err
    written = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert written == ["a.json", "a_2.json"]


def test_without_a_folder_it_writes_beside_the_checkpoint(tmp_path: Path) -> None:
    run = checkpoint(tiny(vix.ViP, depth=1, image_size=8), tmp_path)
    assert main(["explain", str(photograph(tmp_path / "cat.png")), "--ckpt_path", str(run)]) == 0
    assert (tmp_path / "explain" / "cat.png").is_file()


@pytest.mark.parametrize("arguments", [["--ckpt_path", "nowhere"], ["cat.png", "--ckpt_path", "nowhere"]])
def test_a_missing_run_is_refused_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1

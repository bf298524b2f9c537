"""An exported file computes what the net computes, at any batch size, and says how to use it."""

import json
import os
from pathlib import Path

import pytest
import torch

import main
import vix
from tests.commands.runs import digits_net, logits, run_with
from tests.nets import images, tiny
from vix.commands.export import formats
from vix.commands.export.formats import FORMATS, difference, facts_of

# One system for each kernel, mixer and body; all of them by VIX_EVERY_SYSTEM=1, in a quarter of an hour.
SAMPLED = ["ViL", "ViP", "ViN", "FNet", "MLPMixer", "LeViT", "CvT", "CCT"]
SYSTEMS = [*vix.SYSTEMS] if os.environ.get("VIX_EVERY_SYSTEM") else SAMPLED


def export(folder: Path, *options: str) -> int:
    return main.main(["export", "--ckpt_path", str(folder), *options])


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_system_is_the_same_in_every_format(name: str, form: str, tmp_path: Path) -> None:
    net = tiny(vix.SYSTEMS[name]).eval()
    path = tmp_path / f"net{FORMATS[form].suffix}"
    FORMATS[form].write(net, images(net, 3), path, facts_of(net=net.spec))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert difference(FORMATS[form].read(path, ())[0], net, images(net, 17, seed=1)) < 1e-4


@pytest.mark.parametrize(
    "form", ["safetensors", *(pytest.param(form, marks=pytest.mark.slow) for form in ("torch_export", "onnx"))]
)
def test_a_run_becomes_a_file_that_says_how_to_use_it(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = digits_net("FNet")
    run = run_with(net, tmp_path)
    assert export(run.folder, "--format", form) == 0
    path = run.folder / "export" / f"model{FORMATS[form].suffix}"
    assert list(path.parent.iterdir()) == [path]
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{path}: ")
    assert len(captured.out.splitlines()) == 1
    assert not captured.err
    predict, facts = FORMATS[form].read(path, ())
    told = {name: json.loads(text) for name, text in facts.items()}
    assert told["class_names"] == list("0123456789")
    assert (told["mean"], told["std"]) == ([0.3059], [0.3764])
    assert (told["image_size"], told["channels"]) == ([8, 8], 1)
    assert told["net"] == net.spec
    assert "less mean, over std" in told["input"]
    for count in (1, 2, 33):
        batch = images(net, count)
        torch.testing.assert_close(predict(batch), logits(net, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_several_formats_go_where_they_are_told(tmp_path: Path) -> None:
    run = run_with(digits_net(), tmp_path)
    out = tmp_path / "for" / "others"
    assert export(run.folder, "--format", "safetensors", "torch_export", "--out", str(out)) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["others.pt2", "others.safetensors"]


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = formats.read_safetensors

    def wrong(path: Path, trusted: tuple[str, ...]) -> tuple[formats.Predictor, formats.Facts]:
        predict, facts = read(path, trusted)
        return lambda batch: predict(batch) + torch.nan, facts

    broken = formats.Format(".safetensors", formats.write_safetensors, wrong)
    monkeypatch.setitem(FORMATS, "safetensors", broken)
    run = run_with(digits_net(), tmp_path)
    assert export(run.folder, "--format", "safetensors") == 1
    assert not list((run.folder / "export").iterdir())
    assert capsys.readouterr().err == "safetensors: logits differ from torch's by nan, allowed is 1e-04; no file\n"


def test_the_difference_is_that_of_the_worst_batch() -> None:
    net = digits_net()
    batch = images(net, 17)
    assert difference(net, net, batch) == 0
    for count in (1, 3, 17):

        def off(some: torch.Tensor, count: int = count) -> torch.Tensor:
            return net(some) + (100 if len(some) == count else 0)

        assert difference(off, net, batch) > 1
    # A number that is none is not below any bound.
    assert not difference(lambda some: net(some) * torch.nan, net, batch) <= 1e-4


def test_images_for_the_comparison_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    missing = {"class_path": "datamodules.CIFAR10", "init_args": {"root": str(tmp_path / "nowhere")}}
    net = tiny(vix.ViT, image_size=32, num_classes=10, patch_size=8).eval()
    run = run_with(net, tmp_path, missing)
    assert export(run.folder, "--format", "safetensors") == 1
    captured = capsys.readouterr()
    assert "CIFAR-10 is not there" in captured.err
    assert "--images FOLDER" in captured.err
    assert len(captured.err.splitlines()) <= 5
    Image.new("RGB", (40, 50), (200, 100, 50)).save(tmp_path / "one.png")
    assert export(run.folder, "--format", "safetensors", "--images", str(tmp_path / "*.png")) == 0


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(digits_net(), tmp_path)
    monkeypatch.setitem(FORMATS, "onnx", formats.Format(".onnx", formats.write_onnx, formats.read_onnx, ("absent",)))
    assert export(run.folder, "--format", "onnx") == 2
    assert capsys.readouterr().err == "--format onnx needs absent: pip install absent\n"
    assert export(tmp_path / "none", "--format", "onnx") == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_a_file_cannot_name_code_of_its_own(tmp_path: Path) -> None:
    net = digits_net()
    path = tmp_path / "hostile.safetensors"
    facts = facts_of(net={"class_path": "subprocess.Popen", "init_args": {"args": "true"}})
    formats.write_safetensors(net, images(net), path, facts)
    with pytest.raises(ValueError, match=r"'subprocess\.Popen' is outside vix"):
        formats.read_safetensors(path)

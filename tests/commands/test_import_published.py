"""A file of the original code becomes a run folder that the other commands take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import main
from datamodules import CIFAR10
from tests.archives import Archive
from tests.published.goldens import golden
from vix.training.runs import Run
from vix.training.trained import load_trained


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def imported(*arguments: str) -> int:
    return main.main(["import-published", *arguments])


def write(state: Any) -> str:
    torch.save(state, "model.pth")
    return "model.pth"


def only_run() -> Run:
    (folder,) = Path("runs").glob("*/*")
    return Run(folder)


@pytest.mark.parametrize("system", ["ViT", "HybridViNRoPE", "pip_ViN", "MLPMixer", "CCP", "CvN", "LeViP", "FNet2D"])
def test_a_published_model_gives_its_logits_from_the_run_folder(system: str) -> None:
    given = ["--set", "num_landmarks=16"] if system == "pip_ViN" else []
    assert imported(write(golden(system).state), *given) == 0
    trained = load_trained(str(only_run().folder))
    with torch.no_grad():
        logits = trained.net(golden(system).images.float())
    expected = golden(system).logits
    # Float32 here, float64 there.
    assert (logits - expected).abs().max() < 2e-4 * expected.abs().max()


@pytest.mark.parametrize("system", ["ViT", "CvP"])
def test_every_command_takes_the_run_folder(system: str, cifar10: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(write(golden(system).state), "--experiment", "authors") == 0
    captured = capsys.readouterr()
    run = only_run()
    assert run.experiment == "authors"
    assert "not in the file, so as in the authors' script: " in captured.out
    assert captured.out.splitlines()[-1] == f"test   python main.py test --ckpt_path {run.folder}"
    data = [f"--data.{name}={value}" for name, value in cifar10.init_args.items()]
    assert main.main(["validate", "--ckpt_path", str(run.folder), *data, "--data.val_fraction=0.5"]) == 0
    assert main.main(["test", "--ckpt_path", str(run.folder), *data]) == 0
    results = json.loads(run.results.read_text())
    assert results["test"]["images"] == 20
    assert (results["imported"]["system"], results["imported"]["file"]) == (system, "model.pth")
    assert len(results["imported"]["sha256"]) == 64
    Image.new("RGB", (32, 32), (250, 10, 10)).save("red.png")
    assert main.main(["predict", "red.png", "--ckpt_path", str(run.folder)]) == 0
    content = json.loads((run.folder / "predict_files.json").read_text())
    assert content["images"][0]["top"][0]["class"] in CIFAR10.class_names
    options = ["--format", "safetensors", "--images", "red.png"]
    assert main.main(["export", "--ckpt_path", str(run.folder), *options]) == 0


def test_data_of_its_own_can_be_named(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.yaml").write_text(
        f"data: {{class_path: datamodules.ImageFolder, init_args: {{root: {image_folder}, image_size: 32}}}}"
    )
    assert imported(write(golden("ViT").state), "--config", "data.yaml") == 2
    assert capsys.readouterr().err == "data: datamodules.ImageFolder has num_classes 3, but the net was made for 10\n"
    assert not list(Path("runs").glob("*/*"))


def test_without_data_the_folder_is_made_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    state = golden("ViT").state | {"mlp_head.1.weight": torch.ones(7, 32), "mlp_head.1.bias": torch.ones(7)}
    assert imported(write(state)) == 0
    assert "no data set of ours has its 7 classes and images: give a YAML with `data:`" in capsys.readouterr().out
    folder = str(only_run().folder)
    assert load_trained(folder).class_names == tuple("0123456")
    Image.new("RGB", (32, 32)).save("black.png")
    assert main.main(["predict", "black.png", "--ckpt_path", folder]) == 2
    assert "does not say how images are normalised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "options", "code", "told"),
    [
        ({"fc.weight": torch.zeros(2, 2)}, [], 1, "are weights of no model that can be loaded"),
        ([1], [], 1, "holds a list, not the state dict"),
        (golden("ViT").state, ["--system", "ViP"], 1, "its weights are those of ViT, not of ViP"),
        (golden("ViT").state, ["--set", "heads=5"], 1, "heads=5 does not divide the width 32"),
        (golden("ViT").state, ["--set", "heads"], 2, "--set heads: give NAME=VALUE"),
        (golden("ViT").state, ["--config", "no.yaml"], 2, "no.yaml: no such file"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line(
    state: Any, options: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(write(state), *options) == code
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert imported("absent.pth") == 1
    assert capsys.readouterr().err == "absent.pth: No such file or directory\n"

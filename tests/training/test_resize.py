"""A run tested on images of another size than it was trained on, from the command line and from Python."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import main
import vix
from tests.commands.runs import run_with
from tests.nets import images, tiny
from vix.training.checkpoint import read_checkpoint
from vix.training.errors import UsageError
from vix.training.resize import resized
from vix.training.runs import Run
from vix.training.trained import load_trained


@pytest.fixture
def run(tmp_path: Path, image_folder: Path) -> Run:
    data: dict[str, Any] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": str(image_folder), "image_size": [16, 16], "augment": {"crop": 0}},
    }
    return run_with(tiny(vix.ViL, num_classes=3, patch_size=4, rank=3).eval(), tmp_path, data)


def test_test_writes_the_scores_of_another_size_beside_those_of_its_own(run: Run) -> None:
    for options in ([], ["--image_size", "32"], ["--image_size=32x48"]):
        assert main.main(["test", "--ckpt_path", str(run.folder), *options]) == 0
    results = json.loads(run.results.read_text())
    assert results["test"]["images"] == results["test_32x32"]["images"] == results["test_32x48"]["images"] == 6
    assert results["test"]["test/loss"] != results["test_32x32"]["test/loss"]
    names = {path.name for path in run.folder.glob("predictions*.csv")}
    assert names == {"predictions.csv", "predictions_32x32.csv", "predictions_32x48.csv"}


def test_every_reader_gives_the_same_net(run: Run) -> None:
    trained = load_trained(str(run.folder), image_size=(32, 24))
    net = load_trained(str(run.folder)).net
    assert trained.reading["image_size"] == (32, 24)
    batch = images(trained.net)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(trained.net(batch), net.resized((32, 24))(batch))
    checkpoint = resized(read_checkpoint(run.last), (32, 24))
    assert checkpoint.image_size == (32, 24)
    assert checkpoint.data is not None
    assert checkpoint.data["init_args"]["image_size"] == [32, 24]


@pytest.mark.parametrize(
    ("command", "size", "told"),
    [
        ("test", "64by48", "--image_size 64by48: must be a side or HEIGHTxWIDTH"),
        ("test", "0", "--image_size 0: must be a side"),
        ("test", "30", "patch_size 4x4 does not divide image_size 30x30"),
        ("fit", "32", "--image_size 32: for validate, test, predict and export"),
    ],
)
def test_a_wrong_size_is_refused_in_one_line(
    command: str, size: str, told: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([command, "--ckpt_path", str(run.folder), "--image_size", size]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_net_that_cannot_be_resized_is_named(run: Run) -> None:
    checkpoint = read_checkpoint(run.last)
    checkpoint.model["net"] = None
    with pytest.raises(UsageError, match="its net has no spec, so its images have one size"):
        resized(checkpoint, (32, 32))

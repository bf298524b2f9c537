"""Checkpoints of strangers: nothing in them runs, and nothing they name is imported unasked."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.standin import fit, net
from vix.training import ImageClassifier
from vix.training.checkpoint import read_checkpoint
from vix.training.errors import UsageError


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """What a checkpoint of ours holds."""
    _, run = fit(ImageClassifier(net()), tmp_path, max_epochs=1)
    loaded: dict[str, Any] = torch.load(run.last, weights_only=True)
    loaded["vix"]["data"] = {"class_path": "datamodules.Digits", "init_args": {"root": "../my.data"}}
    return loaded


def save(content: Any, folder: Path) -> Path:
    path = folder / "stranger.ckpt"
    torch.save(content, path)
    return path


def test_what_we_wrote_is_read(content: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(content, tmp_path))
    assert checkpoint.model["net"]["class_path"] == "vix.ViP"
    assert checkpoint.data == {"class_path": "datamodules.Digits", "init_args": {"root": "../my.data"}}
    assert (checkpoint.image_size, checkpoint.channels, checkpoint.class_names[0]) == ((4, 4), 1, "dark")
    assert (checkpoint.epoch, checkpoint.step) == (1, 5)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the current folder that leaves a mark when it is imported."""
    folder = tmp_path / "current"
    folder.mkdir()
    mark = folder / "executed"
    (folder / "evil_module.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Net: pass\n")
    (folder / "evil.yaml").write_text("class_path: evil_module.Net\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return mark


PLACES = [
    ("hyper_parameters", "net", {"class_path": "evil_module.Net", "init_args": {}}),
    (
        "hyper_parameters",
        "net",
        {"class_path": "vix.ViP", "init_args": {"attention": {"class_path": "evil_module.Net"}}},
    ),
    ("hyper_parameters", "net", {"class_path": "vix.ViP", "init_args": {"attention": "evil_module.Net"}}),
    ("hyper_parameters", "net", {"class_path": "vix.ViP", "init_args": {"attention": "./evil"}}),
    ("hyper_parameters", "net", "evil.yaml"),
    ("hyper_parameters", "net", {"class_path": "vixen.Net", "init_args": {}}),
    ("hyper_parameters", "optimizer", "evil_module.Net"),
    ("hyper_parameters", "optimizer", {"class_path": "evil_module.Net"}),
    ("hyper_parameters", "schedule", {"class_path": "evil_module.Net"}),
    ("hyper_parameters", "label_smoothing", "evil.yaml"),
    ("hyper_parameters", "evil.yaml", 1),
    ("vix", "data", {"class_path": "evil_module.Net"}),
    ("vix", "data", {"class_path": "datamodules.Digits", "init_args": {"augment": ["evil_module.Net"]}}),
    ("vix", "data", {"class_path": "datamodules.Digits", "init_args": {"augment": {"root": "evil.yaml"}}}),
    ("vix", "data", "evil.yaml"),
    ("vix", "experiment", "../../outside"),
    ("vix", "experiment", ".."),
]


@pytest.mark.parametrize(("part", "key", "value"), PLACES)
def test_a_hostile_name_is_refused_before_anything_is_imported(
    part: str, key: str, value: Any, content: dict[str, Any], trap: Path, tmp_path: Path
) -> None:
    content[part][key] = value
    path = save(content, tmp_path)
    for read in (read_checkpoint, ImageClassifier.load_from_checkpoint):
        with pytest.raises(UsageError) as refused:
            read(path)
        assert str(refused.value).startswith(str(path))
        assert len(str(refused.value).splitlines()) <= 2
    assert not trap.exists()
    assert "evil_module" not in sys.modules


def test_a_module_that_is_trusted_by_name_may_be_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["hyper_parameters"]["net"] = {"class_path": "tests.training.standin.Foreign", "init_args": {}}
    path = save(content, tmp_path)
    with pytest.raises(UsageError, match=r"add --trust tests\.training\.standin"):
        read_checkpoint(path)
    assert read_checkpoint(path, trusted=["tests.training.standin"]).model["net"]["class_path"].endswith("Foreign")


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self.mark), "w"))


def test_a_pickle_bomb_is_refused_and_does_not_go_off(content: dict[str, Any], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    content["bomb"] = Bomb(mark)
    path = save(content, tmp_path)
    with pytest.raises(UsageError, match="refused, it is no checkpoint or holds more than weights and plain values"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"words", pickle.dumps({"a": 1}), b"PK\x03\x04 cut off", bytes(1000)],
    ids=["empty", "text", "pickle", "zip", "zeros"],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(data)
    with pytest.raises(UsageError) as refused:
        read_checkpoint(path)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("content", [[1], {"state_dict": {}}, {"state_dict": {}, "hyper_parameters": {}, "vix": 3}])
def test_a_checkpoint_of_another_project_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a checkpoint of this project"):
        read_checkpoint(save(content, tmp_path))


def test_another_format_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["vix"]["format"] = 99
    with pytest.raises(UsageError, match="its format is 99, this version reads 1"):
        read_checkpoint(save(content, tmp_path))

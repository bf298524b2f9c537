import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules import cache as cache_module
from datamodules.cache import fingerprint, memory_map
from datamodules.errors import DataError
from datamodules.samples import ArraySamples

IMAGES = torch.randint(0, 256, (600, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Counted(ArraySamples):
    """Counts how often it is read."""

    def __init__(self, print_: str = "a" * 64, breaks_at: int | None = None) -> None:
        super().__init__(IMAGES, torch.arange(600) % 7, torch.arange(600) * 2)
        self.fingerprint = print_
        self.reads = 0
        self.breaks_at = breaks_at

    def fetch(self, rows: Tensor) -> Tensor:
        self.reads += 1
        if self.breaks_at is not None and self.breaks_at in rows:
            raise DataError("cannot read the image bee.png")
        return super().fetch(rows)


def test_images_are_decoded_once_and_come_back_as_they_were(tmp_path: Path) -> None:
    source = Counted()
    for _ in range(2):
        mapped = memory_map(source, tmp_path, "bees-train")
        assert source.reads == 3
        rows = torch.tensor([599, 3, 3, 256])
        assert mapped.fetch(rows).equal(IMAGES[rows])
        assert mapped.labels.equal(source.labels)
        assert mapped.positions.equal(source.positions)
        assert mapped.shape == (3, 4, 5)
        assert len(mapped) == 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bees-train-" + "a" * 16]


def test_a_changed_source_is_decoded_anew_and_the_old_images_go(tmp_path: Path) -> None:
    old = memory_map(Counted(), tmp_path, "bees-train")
    other = memory_map(Counted(), tmp_path, "bees-test")
    changed = Counted("b" * 64)
    memory_map(changed, tmp_path, "bees-train")
    assert changed.reads == 3
    assert {path.name[:12] for path in tmp_path.iterdir()} == {"bees-train-b", "bees-test-aa"}
    assert other.fetch(torch.tensor([1])).equal(IMAGES[1:2])
    del old


def test_a_fingerprint_tells_names_sizes_times_and_settings(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"22")
    files = [(name, (tmp_path / name).stat()) for name in ("one", "two")]
    prints = [fingerprint(files, size=8), fingerprint(files, size=9), fingerprint(files[:1], size=8)]
    prints.append(fingerprint([("uno", files[0][1]), files[1]], size=8))
    os.utime(tmp_path / "one", ns=(0, 0))
    prints.append(fingerprint([(name, (tmp_path / name).stat()) for name in ("one", "two")], size=8))
    assert len(set(prints)) == 5
    assert fingerprint(reversed(files), size=8) == prints[0]


def test_nothing_half_written_is_left_where_an_image_is_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bee\.png"):
        memory_map(Counted(breaks_at=300), tmp_path, "bees-train")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write into .*file: .*\n.*cache"):
        memory_map(Counted(), tmp_path / "file", "bees")
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match="0 MiB free"):
        memory_map(Counted(), tmp_path / "new", "bees")
    assert not (tmp_path / "new").exists()


def test_two_processes_that_write_at_once_both_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cache_module._write

    def other_first(source: Counted, cache: Path, folder: Path) -> None:
        write(source, cache, folder)
        write(source, cache, folder)

    monkeypatch.setattr(cache_module, "_write", other_first)
    mapped = memory_map(Counted(), tmp_path, "bees")
    assert mapped.fetch(torch.arange(600)).equal(IMAGES)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_worker_opens_the_images_for_itself(tmp_path: Path) -> None:
    mapped = memory_map(Counted(), tmp_path, "bees")
    mapped.fetch(torch.tensor([0]))
    sent = pickle.dumps(mapped)
    assert len(sent) < 1000
    assert pickle.loads(sent).fetch(torch.arange(600)).equal(IMAGES)


def test_what_is_written_is_an_ordinary_array_with_its_fingerprint_beside_it(tmp_path: Path) -> None:
    memory_map(Counted(), tmp_path, "bees")
    (folder,) = tmp_path.iterdir()
    assert np.load(folder / "images.npy").shape == (600, 3, 4, 5)
    assert json.loads((folder / "fingerprint.json").read_text())["fingerprint"] == "a" * 64


@pytest.mark.parametrize("fault", ["cut off", "missing", "noise", "of another source", "unlabelled"])
def test_decoded_images_that_were_damaged_are_decoded_anew(fault: str, tmp_path: Path) -> None:
    memory_map(Counted(), tmp_path, "bees")
    (folder,) = tmp_path.iterdir()
    images = folder / "images.npy"
    if fault == "missing":
        images.unlink()
    elif fault == "unlabelled":
        (folder / "labels.npy").write_bytes(b"")
    elif fault == "of another source":
        (folder / "fingerprint.json").write_text(json.dumps({"fingerprint": "a" * 16, "version": 1}))
    else:
        images.write_bytes(images.read_bytes()[:-1] if fault == "cut off" else b"noise")
    source = Counted()
    assert memory_map(source, tmp_path, "bees").fetch(torch.arange(600)).equal(IMAGES)
    assert source.reads == 3
    assert len(list(tmp_path.iterdir())) == 1

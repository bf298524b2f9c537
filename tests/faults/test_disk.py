"""A full disk, a read-only one, a folder without permission: a clear error, and what was there is whole."""

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.denial import can_mount, files_above, no_privilege, read_only, small_disk
from tests.faults.processes import Command, finished, leftovers, runs
from tests.test_main import QUICK, overlay, small
from vix.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

TRAINING = [*small(), *QUICK, "--trainer.log_every_n_steps=1"]
# Bytes of a disk on which config and split find room, and on which one checkpoint does; where a sandbox
# lets nobody mount, the limits on a file's size above stand for it.
FULL_DISKS = [40_000, 130_000] if can_mount() else []
# How a folder refuses, and the system's number for it.
REFUSALS = {"permission": errno.EACCES, **({"read-only": errno.EROFS} if can_mount() else {})}


def told(command: Command, *words: str) -> None:
    """The command ended with exit code 1 and few lines, in which the words are."""
    assert command.wait() == 1, command.log
    errors = [
        line for line in command.log.splitlines() if not line.startswith(("epoch", "vip_rope:", "resuming", "  "))
    ]
    assert "Traceback" not in command.log
    assert 1 <= len(errors) <= 5, command.log
    for word in words:
        assert word in command.log, command.log


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_one_before_whole(tmp_path: Path) -> None:
    folder = tmp_path / "limited"
    run = finished(TRAINING, folder)
    before = {path: path.read_bytes() for path in (run.last, run.best)}
    more = ["fit", "--ckpt_path", str(run.folder), "--trainer.max_epochs=3"]
    limit = run.last.stat().st_size // 2
    told(
        Command(more, folder, prepare=partial(files_above, limit)),
        f"checkpoints/last.ckpt cannot be written: {os.strerror(errno.EFBIG)}",
        "MiB free there",
        f"python main.py fit --ckpt_path {run.folder}",
    )
    assert before == {path: path.read_bytes() for path in before}
    assert not leftovers(folder)
    # and with room it goes on
    command = Command(more, folder)
    assert command.wait() == 0, command.log
    assert read_checkpoint(run.last).epoch == 3


def test_numbers_for_which_there_is_no_room_leave_whole_rows(tmp_path: Path) -> None:
    folder = tmp_path / "limited"
    many = ["--trainer.max_epochs=60", "--trainer.enable_checkpointing=false"]
    told(
        Command(["fit", *TRAINING, *many], folder, prepare=partial(files_above, 9000)),
        f"metrics.csv cannot be written: {os.strerror(errno.EFBIG)}",
        "no checkpoint had been written yet",
    )
    (run,) = runs(folder)
    table = (run.folder / "metrics.csv").read_text()
    assert table.endswith("\n")
    assert {line.count(",") for line in table.splitlines()} == {table.splitlines()[0].count(",")}
    assert not leftovers(folder)


def test_a_run_for_which_there_is_no_room_at_all_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "limited"
    told(Command(["fit", *TRAINING], folder, prepare=partial(files_above, 600)), "config.yaml cannot be written")
    assert not runs(folder)


def on_a_small_disk(folder: Path, size: int, seen: Path) -> None:
    """The runs' folder becomes a disk of its own, which this process alone can see; it shows what is there."""
    small_disk(folder, size)
    end = os._exit

    def show(code: int) -> None:
        shutil.copytree(folder, seen)
        end(code)

    os._exit = show  # type: ignore[assignment]


@pytest.mark.parametrize("size", FULL_DISKS)
def test_on_a_full_disk_the_checkpoint_before_is_whole(size: int, tmp_path: Path) -> None:
    folder, seen = tmp_path / "full", tmp_path / "seen"
    (folder / "runs").mkdir(parents=True)
    command = Command(
        ["fit", *TRAINING, "--trainer.max_epochs=3"],
        folder,
        prepare=partial(on_a_small_disk, folder / "runs", size, seen),
    )
    told(command, f"cannot be written: {os.strerror(errno.ENOSPC)} (0 MiB free there)")
    assert not leftovers(seen)
    for checkpoint in seen.rglob("*.ckpt"):
        read_checkpoint(checkpoint)


def refusing(way: str, folder: Path) -> Callable[[], None]:
    """What makes a process unable to write into a folder."""
    return partial(read_only, folder) if way == "read-only" else no_privilege


@pytest.mark.parametrize("way", REFUSALS)
def test_in_a_folder_that_refuses_nothing_is_begun(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "denied"
    (folder / "runs").mkdir(parents=True, mode=0o555)
    command = Command(["fit", *TRAINING], folder, prepare=refusing(way, folder / "runs"))
    told(command, os.strerror(REFUSALS[way]), "runs/vip_rope")
    assert not list(folder.glob("runs/*"))


@pytest.mark.parametrize("way", REFUSALS)
def test_a_checkpoint_folder_that_refuses_keeps_what_it_has(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "denied"
    run = finished(TRAINING, folder)
    before = run.last.read_bytes()
    if way == "permission":
        run.last.parent.chmod(0o555)
    more = ["fit", "--ckpt_path", str(run.folder), "--trainer.max_epochs=3"]
    command = Command(more, folder, prepare=refusing(way, run.last.parent))
    told(command, f"last.ckpt cannot be written: {os.strerror(REFUSALS[way])}")
    assert run.last.read_bytes() == before
    run.last.parent.chmod(0o755)
    assert not leftovers(folder)


CACHED = [
    *small("vit"),
    *overlay("image_folder"),
    "--trainer.max_epochs=1",
    "--data.image_size=16",
    "--data.augment.crop=2",
]


@pytest.mark.parametrize("way", ["limit", *REFUSALS])
def test_a_cache_that_cannot_be_written_leaves_nothing(way: str, tmp_path: Path, image_folder: Path) -> None:
    folder, cache = tmp_path / "cached", tmp_path / "cache"
    cache.mkdir()
    if way == "permission":
        cache.chmod(0o555)
    prepare = partial(files_above, 10_000) if way == "limit" else refusing(way, cache)
    data = [f"--data.root={image_folder}", f"--data.cache={cache}"]
    told(Command(["fit", *CACHED, *data], folder, prepare=prepare), f"cannot write decoded images into {cache}")
    assert not list(cache.iterdir())
    assert not runs(folder)


def test_a_killed_decoding_is_cleared_away_by_the_next_run(tmp_path: Path, image_folder: Path) -> None:
    folder, cache = tmp_path / "cached", tmp_path / "cache"
    data = [f"--data.root={image_folder}", f"--data.cache={cache}"]
    command = Command(["fit", *CACHED, *data], folder, prepare=decode_for_ever)
    command.wait_until(lambda: list(cache.glob(".partial-*/images.npy")))
    # another run does not take it for abandoned while it is written
    other = image_folder.with_name("other")
    shutil.copytree(image_folder, other)
    finished([*CACHED, f"--data.root={other}", f"--data.cache={cache}"], tmp_path / "beside")
    assert len(list(cache.glob(".partial-*"))) == 1
    assert command.kill()
    finished([*CACHED, *data], folder)
    assert not list(cache.glob(".partial-*"))


def decode_for_ever() -> None:
    import time

    from datamodules.image_folder import ImageFolder

    read = ImageFolder.read

    def slow(self: ImageFolder, split: object) -> object:
        samples = read(self, split)  # type: ignore[arg-type]
        if samples is not None:
            samples.fetch = lambda rows: time.sleep(600)  # type: ignore[method-assign]
        return samples

    ImageFolder.read = slow  # type: ignore[method-assign,assignment]

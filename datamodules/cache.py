"""Decoded images on disk: written once, mapped into memory by every process that reads them."""

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.download import new_folder
from datamodules.errors import DataError
from datamodules.samples import Samples

if sys.platform != "win32":
    import fcntl

# of the format: a change to what is written or to how images are decoded gives every cache a new name
VERSION = 1
CHUNK = 256
ARRAYS = ("images", "labels", "positions")
# Begins the name of a folder that is being written.
PARTIAL = ".partial-"
JUST_MADE_SECONDS = 1.0


def fingerprint(files: Iterable[tuple[str, os.stat_result]], **facts: Any) -> str:
    """A hash of the names, sizes and times of files, and of what else the decoded images depend on."""
    lines = [f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}" for name, stat in sorted(files)]
    text = json.dumps([VERSION, facts, lines], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class MappedSamples(Samples):
    """Images that lie decoded in a folder which `memory_map` wrote.

    The arrays are opened where they are first used, so that a worker process opens its own.
    """

    def __init__(self, folder: Path, source: Samples) -> None:
        self.folder = folder
        self.fingerprint = source.fingerprint
        self.shape = source.shape

    @cached_property
    def images(self) -> Tensor:
        """All images, uint8 (n, c, y, x), read from the disk where they are touched."""
        # copy-on-write: torch warns of arrays that cannot be written; nothing of ours writes to it
        return torch.from_numpy(np.load(self.folder / "images.npy", mmap_mode="c"))

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(np.load(self.folder / "labels.npy"))

    @cached_property
    def _positions(self) -> Tensor:
        return torch.from_numpy(np.load(self.folder / "positions.npy"))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "fingerprint": self.fingerprint, "shape": self.shape}

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def positions(self) -> Tensor:
        return self._positions

    def fetch(self, rows: Tensor) -> Tensor:
        return self.images.index_select(0, rows)


def memory_map(source: Samples, cache: Path, name: str) -> Samples:
    """`source` decoded into `<cache>/<name>-<fingerprint>/`, or that folder as it is where it is there already.

    The folder appears whole, by one rename; older ones of this name go. One that was damaged later is written anew.
    """
    folder = cache / f"{name}-{source.fingerprint[:16]}"
    if folder.exists() and not _is_whole(folder, source):
        rank_zero_info(f"{folder} is damaged")
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        with new_folder(cache, "Choose another folder: cache."):
            _write(source, cache, folder)
        for other in cache.glob(f"{name}-{'[0-9a-f]' * 16}"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    return MappedSamples(folder, source)


def _is_whole(folder: Path, source: Samples) -> bool:
    """Whether a folder is what `_write` leaves, by its sizes; its images are not read."""
    try:
        about = json.loads((folder / "fingerprint.json").read_text(encoding="utf-8"))
        images, labels, positions = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
        alike = about == {"fingerprint": source.fingerprint, "version": VERSION}
        shapes = images.shape == (len(labels), *source.shape) and labels.shape == positions.shape == (len(labels),)
        return alike and shapes and images.dtype == np.uint8 and labels.dtype == positions.dtype == np.int64
    # what is missing, cut off or overwritten can make NumPy raise nearly anything
    except Exception:
        return False


def _write(source: Samples, cache: Path, folder: Path) -> None:
    rank_zero_info(f"decoding {len(source):,} images into {folder} (once)")
    needed = len(source) * math.prod(source.shape)
    try:
        # a full disk under a memory map would kill the process, not raise
        if (free := shutil.disk_usage(cache).free) < needed:
            raise DataError(
                f"{cache} has {free >> 20:,} MiB free, the decoded images need {needed >> 20:,} MiB\n"
                "Choose another folder (cache) or read the images as they are asked for (in_memory: false)."
            )
        _clear_abandoned(cache)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=cache))
    except OSError as error:
        raise _unwritable(cache, error) from None
    held = _hold(partial)
    try:
        np.save(partial / "labels.npy", source.labels.numpy())
        np.save(partial / "positions.npy", source.positions.numpy())
        (partial / "fingerprint.json").write_text(json.dumps({"fingerprint": source.fingerprint, "version": VERSION}))
        images = np.lib.format.open_memmap(
            partial / "images.npy", mode="w+", dtype=np.uint8, shape=(len(source), *source.shape)
        )
        _reserve(partial / "images.npy")

        def decode(rows: Tensor) -> None:
            images[rows[0] : rows[-1] + 1] = source.fetch(rows).numpy()

        # Pillow decodes outside the interpreter's lock
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, torch.arange(len(source)).split(CHUNK)):
                pass
        images.flush()
        partial.chmod(0o755)
        _rename(partial, folder)
    except OSError as error:
        raise _unwritable(cache, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if held is not None:
            os.close(held)


def _reserve(path: Path) -> None:
    """Takes a file's room on the disk now, where the system can: later its lack would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _hold(partial: Path) -> int | None:
    """Marks a folder as being written by a process that lives; the system unmarks it when that ends, however."""
    if sys.platform == "win32":
        return None
    place = os.open(partial, os.O_RDONLY)
    # some network's file systems know no locks, and then nothing there is ever taken for abandoned
    with suppress(OSError):
        fcntl.flock(place, fcntl.LOCK_EX)
    return place


def _clear_abandoned(cache: Path) -> None:
    """Removes what processes left that were killed while they decoded."""
    for partial in cache.glob(f"{PARTIAL}*"):
        # one just made may not be marked yet; any may vanish, or be marked
        with suppress(OSError):
            if sys.platform == "win32" or time.time() - partial.stat().st_mtime < JUST_MADE_SECONDS:
                continue
            place = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(place)
            shutil.rmtree(partial, ignore_errors=True)


def _unwritable(cache: Path, error: OSError) -> DataError:
    return DataError(f"cannot write decoded images into {cache}: {error.strerror}\nChoose another folder: cache.")


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        # another process was first: its images are the same
        if not folder.is_dir():
            raise

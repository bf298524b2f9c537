"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from vix.training.errors import StorageError, UsageError

# Ends the name of a file that is being written; a process that is killed leaves it, the run's next one removes it.
UNFINISHED = ".part"


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write a file into a `StorageError` that names it and the reason."""
    try:
        yield
    except OSError as error:
        room = ""
        with contextlib.suppress(OSError):
            room = f" ({shutil.disk_usage(path.parent).free >> 20:,} MiB free there)"
        raise StorageError(f"{path} cannot be written: {error.strerror or error}{room}") from error


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file whole or not at all; once this returns, it outlasts a loss of power.

    Raises:
        StorageError: If the disk is full or refuses; what was there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Adds to a text; where that fails, none of it is added."""
    left = text.encode()
    # without a buffer, which would try to write again what there is no room for
    with explained(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a mapping as indented JSON, each list of numbers in one line, whole or not at all."""
    write_text(path, _indented(content, "") + "\n")


def _indented(value: Any, margin: str) -> str:
    deeper = f"{margin}  "
    if isinstance(value, Mapping) and value:
        items = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {_indented(item, deeper)}" for key, item in value.items()
        ]
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        items = [_indented(item, deeper) for item in value]
    else:
        return json.dumps(value, ensure_ascii=False)
    first, last = "{}" if isinstance(value, Mapping) else "[]"
    return f"{first}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{margin}{last}"


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote; an empty mapping where there is no such file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not one of our files: it holds no mapping")
    return content


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder and the folders in it."""
    for left in folder.rglob(f".*{UNFINISHED}"):
        left.unlink(missing_ok=True)


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's writer of checkpoints, with the promise of `write_bytes`.

    Lightning's own writes into the system's folder for temporary files, another disk as a rule, and copies from there:
    not at once, and a killed process leaves the first file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Serialises in memory, so that only writing can fail while the disk is touched."""
        if storage_options is not None:
            raise TypeError("checkpoints are plain files: there are no storage_options")
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())

"""Run folders: `<root>/<experiment>/<id>/` holds all that a run writes."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vix.training.errors import UsageError

# Set before processes are launched, so that all of them write into one folder.
RUN_VARIABLE = "VIX_RUN"


@dataclass(frozen=True)
class Run:
    """A run's folder and the places in it; nothing is created by asking.

    Args:
        folder: `<root>/<experiment>/<id>`.
    """

    folder: Path

    @property
    def id(self) -> str:
        """Time of start (UTC) and four random characters."""
        return self.folder.name

    @property
    def experiment(self) -> str:
        """Stem of the system's YAML."""
        return self.folder.parent.name

    @property
    def config(self) -> Path:
        """The effective configuration, which `fit --config` accepts again."""
        return self.folder / "config.yaml"

    @property
    def results(self) -> Path:
        """Scores, and the circumstances they were reached in."""
        return self.folder / "results.json"

    @property
    def split(self) -> Path:
        """Indices of the training and validation images."""
        return self.folder / "split.json"

    @property
    def predictions(self) -> Path:
        """One row an image of the test split, written by `test`."""
        return self.folder / "predictions.csv"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch: the one to resume."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch on the validation split: the one to test."""
        return self.folder / "checkpoints" / "best.ckpt"


def new_run(experiment: str, root: Path) -> Run:
    """Names a new run; two runs started in one second still differ.

    The agent of a W&B sweep has named it already, and W&B takes no other name.

    Raises:
        UsageError: If the agent's name cannot be that of a folder.
    """
    if os.environ.get("WANDB_SWEEP_ID") and (given := os.environ.get("WANDB_RUN_ID")):
        if not re.fullmatch(r"[\w-]+", given):
            raise UsageError(f"WANDB_RUN_ID={given!r}: a run's id is made of letters, digits, - and _")
        return Run(root / experiment / given)
    return Run(root / experiment / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")


@contextmanager
def shared(run: Run) -> Iterator[Run]:
    """Makes processes launched within use this run's folder, and yields the run to use.

    A process that was itself launched for one rank of a run gets the run that its launcher named.
    """
    if "LOCAL_RANK" in os.environ and RUN_VARIABLE in os.environ:
        yield Run(Path(os.environ[RUN_VARIABLE]))
        return
    os.environ[RUN_VARIABLE] = str(run.folder.absolute())
    try:
        yield run
    finally:
        os.environ.pop(RUN_VARIABLE, None)


def discard(run: Run) -> None:
    """Removes the folder of a run that never began to train, and the experiment's where nothing else is in it."""
    shutil.rmtree(run.folder, ignore_errors=True)
    for folder in (run.folder.parent, run.folder.parent.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def run_of(checkpoint: Path) -> Run | None:
    """The run a checkpoint file lies in, or None where it lies elsewhere."""
    folder = checkpoint.parent.parent
    return Run(folder) if checkpoint.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def find_checkpoint(place: str, *, resume: bool) -> Path:
    """The checkpoint file that `--ckpt_path` means.

    Args:
        place: A checkpoint file or a run folder.
        resume: In a folder take the last epoch's instead of the best on validation.

    Returns:
        The file; in a run folder without a best one (a run without validation) the last.

    Raises:
        UsageError: If there is none.
    """
    path = Path(place)
    if path.is_file():
        return path
    if not path.exists():
        raise UsageError(f"--ckpt_path {place}: no such file or folder; give a run folder or a checkpoint in one")
    run = Run(path)
    for candidate in [run.last] if resume else [run.best, run.last]:
        if candidate.is_file():
            return candidate
    raise UsageError(f"--ckpt_path {place}: no checkpoint there; a run folder has checkpoints/last.ckpt")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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

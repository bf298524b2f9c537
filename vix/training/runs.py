"""Run folders: `<root>/<experiment>/<id>/` holds all that a run writes."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vix.training.errors import UsageError
from vix.training.files import explained, read_json, remove_unfinished

if sys.platform != "win32":
    import fcntl


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
        """The checkpoint to test: of the best epoch on the validation split, or of the last (`--monitor null`)."""
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
def claimed(run: Run) -> Iterator[None]:
    """Creates a run's folder and keeps other processes from training the run as long as this one lives.

    Raises:
        UsageError: If another process trains it.
        StorageError: If there can be no such folder.
    """
    with explained(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    # Windows cannot lock a folder
    place = None if sys.platform == "win32" else _lock(run.folder)
    try:
        remove_unfinished(run.folder)
        yield
    finally:
        if place is not None:
            os.close(place)


def _lock(folder: Path) -> int:
    """Locks a folder; the system unlocks it when what is returned is closed, or the process dies."""
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            # a file system without locks
            return place
        os.close(place)
        raise UsageError(f"{folder}: another process is training this run; wait for its end, or stop it") from None
    return place


def unfinished_run(experiment: str, root: Path, asked: str) -> Run | None:
    """The newest run that began with the same settings, has a checkpoint and did not come to its end.

    Args:
        experiment: Name of the experiment.
        root: Folder of the run folders.
        asked: What identifies the settings, see `plan.asked`.
    """
    for folder in sorted((root / experiment).glob("*/"), reverse=True):
        run = Run(folder)
        results = read_json(run.results) if run.last.is_file() or run.best.is_file() else {}
        if results.get("asked") == asked and results.get("finished") is False:
            return run
    return None


def discard(run: Run) -> None:
    """Removes the folder of a run that never began to train, and the experiment's where nothing else is in it."""
    shutil.rmtree(run.folder, ignore_errors=True)
    for folder in (run.folder.parent, run.folder.parent.parent):
        # what is mounted, or lies where nothing can be changed, stays; that is no reason to hide why the run ended
        with contextlib.suppress(OSError):
            if not any(folder.iterdir()):
                folder.rmdir()


def run_of(checkpoint: Path) -> Run | None:
    """The run a checkpoint file lies in, or None where it lies elsewhere."""
    folder = checkpoint.parent.parent
    return Run(folder) if checkpoint.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def find_checkpoint(place: str, *, resume: bool) -> Path:
    """The checkpoint file that `--ckpt_path` means.

    Args:
        place: A checkpoint file or a run folder.
        resume: In a folder take the last one instead of the best on validation.

    Returns:
        The file; in a run folder that has only one of the two, that.

    Raises:
        UsageError: If there is none.
    """
    path = Path(place)
    if path.is_file():
        return path
    if not path.exists():
        raise UsageError(f"--ckpt_path {place}: no such file or folder; give a run folder or a checkpoint in one")
    run = Run(path)
    for candidate in [run.last, run.best] if resume else [run.best, run.last]:
        if candidate.is_file():
            return candidate
    raise UsageError(f"--ckpt_path {place}: no checkpoint there; a run folder has checkpoints/last.ckpt")

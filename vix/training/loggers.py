"""Where numbers go: a CSV file always, W&B where it can."""

import csv
import io
import netrc
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from vix.training.console import say
from vix.training.files import append_text, write_text
from vix.training.processes import is_first
from vix.training.runs import Run
from vix.training.wandb_logger import SturdyWandbLogger, offline_line, settings

FIRST = ("epoch", "step")
WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True)
class WandbSettings:
    """How Weights & Biases is used.

    Args:
        mode: `auto` is online where a key is found and the server answers, else offline; the variable WANDB_MODE, where
            it is set, wins over `auto`.
        project: Project that the run belongs to.
        entity: User or team; W&B's own default where left out.
        group: Name that joins runs; left out, the net's system.
        tags: Words to find the run by, beside those that say what kind of net and data it is.
        images: How many validation images are shown with their predictions, and how many of those that it got wrong.
        upload_best: Whether the best checkpoint is kept as an artifact of the run.

    Raises:
        ValueError: If a number is out of range.
    """

    mode: WandbMode = "auto"
    project: str = "vix"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    images: int = 32
    upload_best: bool = False

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"wandb.images must be at least 0, got {self.images}")


class MetricsTable(Logger):
    """`metrics.csv`: one row a logged step, the same columns in all rows, cells empty where nothing was logged.

    What is logged at one step, at whatever moments, comes into one row. A resumed run goes on in its table; the rows of
    steps that it takes again are dropped first.

    Args:
        run: The run whose table it is.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.path = run.folder / "metrics.csv"
        self._run = run
        self._columns: list[str] = []
        self._pending: dict[str, str] = {}

    @property
    def name(self) -> str:
        """Empty, so that Lightning adds no folder of its own."""
        return ""

    @property
    def version(self) -> str:
        """Empty, likewise."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._run.folder)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self._run.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsTable":
        """Itself: there is no more to it."""
        return self

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds values to the row of a step."""
        # Lightning counts from 0; a row says how many steps were taken and in which epoch, counted from 1
        row = {key: f"{value:.8g}" for key, value in metrics.items()}
        epoch = str(int(metrics["epoch"]) + 1) if "epoch" in metrics else self._pending.get("epoch", "")
        row |= {"epoch": epoch, "step": str((step or 0) + 1)}
        if self._pending and self._pending["step"] != row["step"]:
            self.flush()
        self._pending |= row

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes what is logged so far: what led to a checkpoint must be there when it is resumed."""
        self.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the last row."""
        self.flush()

    def flush(self) -> None:
        """Writes the pending row; a new column means writing the file anew."""
        if not self._pending:
            return
        row, self._pending = self._pending, {}
        if not self._columns and self.path.is_file():
            self._columns = _read(self.path)[0]
        new = [key for key in row if key not in self._columns]
        if new:
            rows = _read(self.path)[1] if self.path.is_file() else []
            self._columns += sorted(new, key=lambda key: (key not in FIRST, key))
            write_text(self.path, _text(self._columns, [*rows, row], header=True))
        else:
            append_text(self.path, _text(self._columns, [row]))

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Drops the rows after a step, which the resumed run will log again.

        Args:
            step: Optimiser steps taken when the checkpoint was written.
        """
        if not self.path.is_file():
            return
        self._columns, rows = _read(self.path)
        write_text(self.path, _text(self._columns, [row for row in rows if int(row["step"]) <= step], header=True))


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    # a process that was killed may have left half a row
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    reader = csv.DictReader(io.StringIO(whole))
    rows = list(reader)
    return list(reader.fieldnames or ()), rows


def _text(columns: list[str], rows: list[dict[str, str]], *, header: bool = False) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def wandb_mode(asked: WandbMode) -> tuple[Literal["online", "offline", "disabled"], str]:
    """Decides before anything is started, so that W&B never asks and never fails for want of a key.

    Args:
        asked: What the configuration says.

    Returns:
        The mode, and why it is not online (empty where nobody needs to know).
    """
    variable = os.environ.get("WANDB_MODE", "")
    if asked == "auto" and variable:
        mode = {"dryrun": "offline", "run": "online"}.get(variable, variable)
        if mode in ("offline", "disabled"):
            return ("offline", "WANDB_MODE") if mode == "offline" else ("disabled", "")
    elif asked in ("offline", "disabled"):
        return ("offline", "asked for") if asked == "offline" else ("disabled", "")
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not _has_key(urlsplit(server).hostname or ""):
        return "offline", "no key; `wandb login` stores one"
    if not _answers(server):
        return "offline", f"{server} does not answer"
    return "online", ""


def _has_key(host: str) -> bool:
    """Whether W&B would find a key where it looks: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if path.is_file() and netrc.netrc(path).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError) as error:
            say(f"{path}: not readable, so no W&B key is taken from it ({error})")
    return False


def _answers(url: str, seconds: float = 5.0) -> bool:
    place = urlsplit(url)
    try:
        with socket.create_connection((place.hostname or "", place.port or 443), timeout=seconds):
            return True
    except OSError:
        return False


def wandb_logger(run: Run, asked: WandbSettings, *, kinds: Mapping[str, str]) -> SturdyWandbLogger | None:
    """W&B's logger for a run, None where W&B is disabled; it tells how to sync where it is offline.

    Args:
        run: Its id is W&B's too, so that a run that is resumed stays one.
        asked: What the user wants.
        kinds: What the run is of, such as its `system` and its `data`: the system groups it, all others tag it.
    """
    mode, why = wandb_mode(asked.mode)
    if mode == "disabled":
        return None
    if mode == "offline" and is_first():
        say(offline_line(why, run.folder))
    return SturdyWandbLogger(
        run.folder,
        name=run.experiment,
        id=run.id,
        project=asked.project,
        entity=asked.entity,
        group=asked.group or kinds.get("system"),
        tags=[*(f"{kind}:{word}" for kind, word in kinds.items() if kind != "system"), *asked.tags],
        mode=mode,
        settings=settings(),
    )


@contextmanager
def wandb_files(run: Run) -> Iterator[None]:
    """Makes W&B keep what waits for its upload in the run's folder, where the user has named no other place.

    It would lie in the home folder, and a run that is synced from another machine would come without its pictures.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str((run.folder / "wandb").absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]

"""The record of a run: its configuration, its split, its scores and the circumstances they were reached in."""

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from vix.training.callbacks.checkpoints import BestAndLast
from vix.training.files import read_json, write_json, write_text
from vix.training.plan import LINKED, without
from vix.training.processes import writes_files
from vix.training.runs import Run

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy", "wandb")
# What changes no number, or is meant to differ between runs that are averaged.
NO_SETTING = ("seed_everything", "runs", "wandb", "save_every")
NO_DATA_SETTING = ("seed", "root", "cache", "mirror", "in_memory", "num_workers")
NO_TRAINER_SETTING = (
    "accelerator",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "logger",
    "profiler",
)
PROTOCOL = (
    "Scores are true means over images in eval mode. The validation split is cut from the training split (split.json); "
    "`best` is {best}, `last` is the final epoch. The official test split is read by `test` alone."
)


class RunRecord(Callback):
    """Writes config.yaml and split.json when training starts, results.json after every epoch and at the end.

    Args:
        run: The run's folder.
        config: The effective configuration, plain types, linked values included.
        costs: The net's parameters, tokens, operations.
        checkpoints: Knows the best and the last scores.
        overlays: Names of the YAMLs that were given beside the system's.
        asked: Identifies the settings that were given.
    """

    def __init__(
        self,
        run: Run,
        *,
        config: Mapping[str, Any],
        costs: Mapping[str, int],
        checkpoints: BestAndLast,
        overlays: Sequence[str] = (),
        asked: str = "",
    ) -> None:
        self.run = run
        self.config = config
        self.costs = dict(costs)
        self.checkpoints = checkpoints
        self.overlays = list(overlays)
        self.asked = asked
        self.circumstances: dict[str, Any] = {"versions": versions(), **commit(Path(__file__))}
        # Training has begun, so that from now on the folder is worth keeping.
        self.begun = False
        self._earlier_seconds = 0.0
        self._start = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is known before the first step; the data is there and in order by now."""
        self._start = time.monotonic()
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        if not writes_files(trainer):
            return
        write_text(self.run.config, as_yaml(self.run, self.config))
        datamodule: Any = getattr(trainer, "datamodule", None)
        if hasattr(datamodule, "split"):
            write_json(self.run.split, datamodule.split())
        self.begun = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the results without scores, so that a run that dies early can be seen as such."""
        self._write(trainer, finished=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the results so far."""
        self._write(trainer, finished=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the results."""
        self._write(trainer, finished=True)

    def state_dict(self) -> dict[str, Any]:
        """The time spent so far."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting from a checkpoint."""
        self._earlier_seconds = state_dict["seconds"]

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._start

    def _write(self, trainer: Trainer, *, finished: bool) -> None:
        if not writes_files(trainer):
            return
        earlier = read_json(self.run.results)
        kept = {key: value for key, value in earlier.items() if key == "test"}
        results = {
            "experiment": self.run.experiment,
            "run": self.run.id,
            "finished": finished,
            "best": self.checkpoints.best,
            "last": self.checkpoints.last,
            **self.costs,
            "seed": self.config.get("seed_everything"),
            # a run that is resumed is given none again
            "overlays": self.overlays or earlier.get("overlays", []),
            "settings": settings_id(self.config),
            "asked": earlier.get("asked", self.asked),
            "net": self.config["model"]["net"],
            "data": self.config["data"],
            "epochs": trainer.current_epoch if finished else trainer.current_epoch + int(trainer.global_step > 0),
            "steps": trainer.global_step,
            "wall_seconds": round(self._seconds(), 2),
            "peak_memory_bytes": peak_memory(trainer),
            "written": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "device": device(trainer),
            **self.circumstances,
            "protocol": PROTOCOL.format(best=self._best()),
        }
        write_json(self.run.results, {**results, **kept})

    def _best(self) -> str:
        monitor = self.checkpoints.monitor
        return "the final epoch, too" if monitor is None else f"the epoch with the best {monitor} on it"


def as_yaml(run: Run, config: Mapping[str, Any]) -> str:
    """The configuration as `fit --config` accepts it: without what the parser links."""
    data, net = config["data"], config["model"]["net"]
    again = {
        **config,
        "data": without(data, ("seed",)),
        "model": {**config["model"], "net": without(net, LINKED)},
    }
    head = f"# {run.experiment}, run {run.id}\n#   python main.py fit --config {run.config}\n"
    return head + yaml.safe_dump(again, sort_keys=False, allow_unicode=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device(trainer: Trainer) -> dict[str, Any]:
    """What a trainer runs on."""
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else _processor()
    return {
        "type": root.type,
        "name": name,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "system": sys.platform,
    }


def peak_memory(trainer: Trainer) -> int | None:
    """Most bytes that tensors took on the first process's GPU since training started; None on a processor."""
    root = trainer.strategy.root_device
    return torch.cuda.max_memory_allocated(root) if root.type == "cuda" else None


def settings_id(config: Mapping[str, Any]) -> str:
    """Eight characters that runs share whose numbers may be averaged: same net, data and recipe, seed and places apart.

    Args:
        config: The effective configuration, plain types.
    """
    kept = {key: value for key, value in config.items() if key not in NO_SETTING}
    for key in ("data", "trainer"):
        arguments = config.get(key) or {}
        if key == "data":
            kept[key] = without(arguments, NO_DATA_SETTING)
        else:
            kept[key] = {name: value for name, value in arguments.items() if name not in NO_TRAINER_SETTING}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit(code: Path) -> dict[str, Any]:
    """The commit of the repository that tracks a file, and whether anything was changed since; None where none does."""
    # the file must be tracked: an installed package may lie inside a repository of something else
    if _git(code.parent, "ls-files", "--error-unmatch", code.name) is None:
        return {"commit": None, "changed": None}
    return {
        "commit": _git(code.parent, "rev-parse", "HEAD"),
        "changed": bool(_git(code.parent, "status", "--porcelain", "--untracked-files=no")),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

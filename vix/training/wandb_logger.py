"""Weights & Biases while things go wrong: no training ends with it, and what is missing there is said in one line."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from vix.training.console import say
from vix.training.errors import UsageError, first_line

# Longest waits in seconds, which W&B's own variables WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT change: it would
# wait 90 s for a server that accepts and is silent, and at the end for ever.
PATIENCE = {"init_timeout": 30, "finish_timeout": 60}


def settings() -> dict[str, Any]:
    """W&B's settings: silent, since what matters is said here, and of limited patience."""
    waits = {name: seconds for name, seconds in PATIENCE.items() if f"WANDB_{name.upper()}" not in os.environ}
    # results.json has the commit
    return {"silent": True, "disable_git": True, "finish_timeout_raises": True, **waits}


def offline_line(why: str, folder: Path) -> str:
    """What is said once of a run that is not uploaded.

    Args:
        why: The reason, in a few words.
        folder: The run's folder.
    """
    return f"W&B is offline ({why}); to upload later: wandb sync {folder / 'wandb'}/offline-run-*"


class SturdyWandbLogger(WandbLogger):
    """Lightning's logger for a server that may refuse, be silent or die, and a process of W&B's that may die.

    A start that fails is repeated offline. Where logging fails later W&B is given up: `metrics.csv` goes on. Both are
    said in one line that tells how to upload.

    Args:
        folder: The run's folder.
        options: As of Lightning's logger.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(save_dir=folder, **options)
        self.folder = folder
        # W&B no longer knows this argument, and would warn of it in every run
        self._wandb_init.pop("anonymous", None)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, started when it is first asked for."""
        if self._experiment is not None or self._wandb_init["mode"] == "offline":
            return self._started()
        before = self._folders()
        try:
            return self._started()
        # what W&B raises for a refused key, a silent server or a dead process has no base class in common
        except Exception as error:
            # W&B's process holds the run's name
            _tear_down()
            for folder in self._folders() - before:
                shutil.rmtree(folder, ignore_errors=True)
            say(offline_line(first_line(error)[:120], self.folder))
            self._wandb_init["mode"] = "offline"
            return self._started()

    def _started(self) -> Any:
        import wandb

        try:
            if self._experiment is None:
                # it logs in, and says so, before it looks at the settings of the run
                wandb.setup(settings=wandb.Settings(silent=True))
            return super().experiment
        except Exception as error:
            if self._wandb_init["mode"] != "offline":
                raise
            raise UsageError(f"W&B cannot start: {first_line(error)}; do without it: --wandb.mode disabled") from error

    def _folders(self) -> set[Path]:
        return set((self.folder / "wandb").glob("run-*"))

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Logs numbers of a step."""
        self._survive(lambda: super(SturdyWandbLogger, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Logs the configuration."""
        self._survive(lambda: super(SturdyWandbLogger, self).log_hyperparams(params))

    @rank_zero_only
    def tell(self, what: Callable[[Any], object]) -> None:
        """Does something else with W&B's run."""
        self._survive(lambda: what(self.experiment))

    def _survive(self, action: Callable[[], object]) -> None:
        try:
            action()
        except UsageError:
            raise
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        import wandb

        lost = self._experiment
        say(unsynced_line(f"its process failed: {first_line(error)[:120]}", lost, "metrics.csv goes on"))
        _tear_down()
        # whatever is still logged goes nowhere; only `wandb.init` makes such a run
        self._experiment = wandb.init(mode="disabled")


def unsynced_line(why: str, run: Any, meanwhile: str = "metrics.csv has everything") -> str:
    """What is said once of a run that was not uploaded to its end."""
    # without the option a run that was online is passed over
    upload = f"to upload the rest: wandb sync --no-skip-online {Path(run.dir).parent}"
    return f"W&B has not all of this run ({why}); {meanwhile}; {upload}"


def close_wandb(*, failed: bool) -> None:
    """Ends W&B's run, so that all is on disk and the next run of this process gets one of its own.

    It waits for the upload as long as `PATIENCE` says, and then tells how to do it later.

    Args:
        failed: Whether the training did.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    run = wandb.run
    try:
        run.finish(exit_code=int(failed))
    except TimeoutError:
        say(unsynced_line("its server does not take it", run))
    # W&B's process has died, which raises nearly anything
    except Exception as error:
        say(unsynced_line(f"its process failed: {first_line(error)}", run))
        _tear_down()
    else:
        if refused := _refused(Path(run.dir).parent / "logs" / "debug-internal.log"):
            say(unsynced_line(refused, run))


def _refused(log: Path) -> str:
    """Why W&B stopped uploading, which it tells its log alone; empty where it did not."""
    if log.is_file() and "filestream: fatal error" in log.read_text(encoding="utf-8", errors="replace"):
        return f"its server refused it, see {log}"
    return ""


def _tear_down() -> None:
    """Forgets W&B's dead process, of which it would otherwise complain when Python ends."""
    import wandb

    # both complain once more that it is dead, which was said
    with suppress(Exception):
        if wandb.run is not None:
            wandb.run.finish(exit_code=1)
    with suppress(Exception):
        wandb.teardown()
    # a run that could not be finished would be taken for the next one's
    wandb.run = None

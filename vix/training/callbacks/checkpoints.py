"""Two checkpoints a run: the last one, to resume, and the best one on validation, to test."""

import filecmp
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from vix.training.errors import Stopped
from vix.training.files import write_bytes
from vix.training.processes import is_rehearsal
from vix.training.runs import Run
from vix.training.signals import Signals


class BestAndLast(Checkpoint):
    """Writes `last.ckpt` after every epoch, and copies it to `best.ckpt` where validation was better than ever.

    Each appears whole, so that a run killed at any moment keeps one to go on from. Where a signal asks for an end,
    `last.ckpt` is written after the step at hand, and training stops.

    Args:
        run: Where they go.
        monitor: The score that decides: the lower the better for a loss, otherwise the higher. None takes each epoch
            for better than those before it, and so the last.
        data: The datamodule's spec, kept in the checkpoint.
        every: Optimiser steps after which `last.ckpt` is written within an epoch, too; 0 never.
        signals: Says whether the end is wanted.
    """

    def __init__(
        self,
        run: Run,
        *,
        monitor: str | None = "val/top1",
        data: dict[str, Any] | None = None,
        every: int = 0,
        signals: Signals | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.monitor = monitor
        self.data = data
        self.every = every
        self.signals = signals
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self._step = 0
        self._resumed: int | None = None
        self._new_best = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees with the other processes, each of which named a run, on the first one's."""
        self.run = trainer.strategy.broadcast(self.run)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what a later command needs to find data and run again."""
        checkpoint.setdefault("vix", {}).update({"data": self.data, "experiment": self.run.experiment})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes note of the step from which a run goes on."""
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.run.last.resolve():
            self._resumed = checkpoint["global_step"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the last checkpoint where it is the best, and the run was killed before it could be copied."""
        if not trainer.is_global_zero or not self.best or self.best["step"] != self._resumed:
            return
        if not self.run.best.is_file() or not filecmp.cmp(self.run.last, self.run.best, shallow=False):
            write_bytes(self.run.best, self.run.last.read_bytes())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watches the signals from the first step on; Lightning has put its own handlers in their place."""
        self._step = trainer.global_step
        if self.signals is not None:
            self.signals.install()
            self.signals.watched = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves within an epoch, where a step is complete and nothing else is to be done before the next one."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if not stepped or trainer.is_last_batch or _validates_next(trainer, batch_idx) or is_rehearsal(trainer):
            return
        wanted = self._wanted(trainer)
        if wanted or (self.every and trainer.global_step % self.every == 0):
            self._save_last(trainer)
        if wanted:
            raise Stopped(wanted, saved=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the scores, epochs counted from 1; saves where they are the best so far, the first of equals."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or is_rehearsal(trainer):
            return
        scores = val_scores(trainer)
        self.last = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **scores}
        if self.is_best(scores):
            self.best = self.last
            if trainer.is_last_batch:
                # the epoch's own checkpoint follows at once, and will do for both
                self._new_best = True
            else:
                trainer.save_checkpoint(self.run.best)

    def is_best(self, scores: dict[str, float]) -> bool:
        """Whether the score that decides is better than all that were noted."""
        if self.monitor is None:
            return True
        if self.monitor not in scores:
            return False
        score, best = scores[self.monitor], self.best.get(self.monitor)
        # nothing would ever be better than what is not a number
        return score == score and (best is None or (score < best if self.monitor.endswith("loss") else score > best))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the state that a resumed run starts from."""
        if is_rehearsal(trainer):
            return
        self._save_last(trainer)
        if self._new_best and trainer.is_global_zero:
            # a copy and no link: whoever overwrites the one must not spoil the other
            write_bytes(self.run.best, self.run.last.read_bytes())
        self._new_best = False
        if not _is_over(trainer) and (wanted := self._wanted(trainer)):
            raise Stopped(wanted, saved=True)

    def state_dict(self) -> dict[str, Any]:
        """The scores of the best and the last validation."""
        return {"best": self.best, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.best, self.last = state_dict["best"], state_dict["last"]

    def _wanted(self, trainer: Trainer) -> int:
        """The signal that any of the processes got: they must stop at the same step. 0 where there was none."""
        wanted = 0 if self.signals is None else self.signals.wanted
        if trainer.world_size > 1:
            here = torch.tensor(wanted, device=trainer.strategy.root_device)
            wanted = int(trainer.strategy.reduce(here, reduce_op="max"))
        return wanted

    def _save_last(self, trainer: Trainer) -> None:
        # numbers first: a resumed run logs again only what comes after the checkpoint
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]  # ours takes any callback
        trainer.save_checkpoint(self.run.last)


def _validates_next(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation within the epoch comes after this batch, which a resumed run would miss."""
    every = trainer.val_check_batch
    if not trainer.enable_validation or every is None or every == float("inf"):
        return False
    batches = batch_idx if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx
    return (batches + 1) % int(every) == 0


def _is_over(trainer: Trainer) -> bool:
    """Whether this was the last epoch, so that nothing is left to be stopped."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return (
        trainer.should_stop
        or (epochs > 0 and trainer.current_epoch + 1 >= epochs)
        or (steps > 0 and trainer.global_step >= steps)
    )


def val_scores(trainer: Trainer) -> dict[str, float]:
    """The scores of the validation that has just ended."""
    return {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val/")}

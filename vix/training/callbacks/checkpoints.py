"""Two checkpoints a run: the last epoch's, to resume, and the best one's on validation, to test."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from vix.training.processes import is_rehearsal
from vix.training.runs import Run


class BestAndLast(Checkpoint):
    """Writes `last.ckpt` after every epoch and `best.ckpt` after every validation that is better than all before.

    Each is written under another name first and then renamed, so that a run killed at any moment keeps a whole one.

    Args:
        run: Where they go.
        monitor: The score that decides: the lower the better for a loss, otherwise the higher.
        data: The datamodule's spec, kept in the checkpoint.
    """

    def __init__(self, run: Run, *, monitor: str = "val/top1", data: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.run = run
        self.monitor = monitor
        self.data = data
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what a later command needs to find data and run again."""
        checkpoint.setdefault("vix", {}).update({"data": self.data, "experiment": self.run.experiment})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the scores, epochs counted from 1; saves where they are the best so far, the first of equals."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or is_rehearsal(trainer):
            return
        scores = val_scores(trainer)
        self.last = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **scores}
        if self.is_best(scores):
            self.best = self.last
            self._save(trainer, self.run.best)

    def is_best(self, scores: dict[str, float]) -> bool:
        """Whether the score that decides is better than all that were noted."""
        if self.monitor not in scores:
            return False
        score, best = scores[self.monitor], self.best.get(self.monitor)
        return best is None or (score < best if self.monitor.endswith("loss") else score > best)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the state that a resumed run starts from."""
        if is_rehearsal(trainer):
            return
        # numbers first: a resumed run logs again only what comes after the checkpoint
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]  # ours takes any callback
        self._save(trainer, self.run.last)

    def state_dict(self) -> dict[str, Any]:
        """The scores of the best and the last validation."""
        return {"best": self.best, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.best, self.last = state_dict["best"], state_dict["last"]

    def _save(self, trainer: Trainer, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.part")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                temporary.replace(path)
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)


def val_scores(trainer: Trainer) -> dict[str, float]:
    """The scores of the validation that has just ended."""
    return {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val/")}

"""What W&B is told beside the numbers: settings and facts, the best epoch's scores, and what was right and wrong in it.

All of it goes through the first process, and all numbers are drawn over `trainer/global_step`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from vix.training.callbacks.checkpoints import BestAndLast, val_scores
from vix.training.callbacks.predictions import Row, gathered
from vix.training.callbacks.record import device
from vix.training.callbacks.showing import classes_table, confusion_chart, pictures, samples_table
from vix.training.console import say
from vix.training.processes import writes_files
from vix.training.runs import Run
from vix.training.wandb_logger import SturdyWandbLogger


class WandbRecord(Callback):
    """Fills a W&B run; see docs/wandb.md for what it holds.

    Args:
        run: The run.
        logger: Its logger.
        config: The effective configuration, plain types, linked values included.
        facts: What follows from it: the net's costs and kinds, versions, the commit.
        checkpoints: Knows which epoch is the best.
        images: How many images are shown of each kind.
        upload_best: Whether the best checkpoint becomes an artifact.
    """

    def __init__(
        self,
        run: Run,
        logger: SturdyWandbLogger,
        *,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        checkpoints: BestAndLast,
        images: int = 32,
        upload_best: bool = False,
    ) -> None:
        self.run = run
        self.logger = logger
        self.config = config
        self.facts = facts
        self.checkpoints = checkpoints
        self.images = images
        self.upload_best = upload_best
        self.rows: list[Row] = []
        self._batches: list[tuple[torch.Tensor, ...]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the settings, and in a resumed run what was best before."""
        if writes_files(trainer):
            facts = {**self.facts, "device": device(trainer)}
            self.logger.log_hyperparams({**self.config, "facts": facts})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells what was best before, where the run is resumed."""
        self._tell_best(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Keeps a batch's predictions on their device."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._batches.append(tuple(outputs.values()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the predictions where the validation was the best so far; `BestAndLast` notes its scores after this."""
        batches, self._batches = self._batches, []
        if batches and self.checkpoints.is_best(val_scores(trainer)):
            self.rows = gathered(batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the best scores so far."""
        self._tell_best(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the best epoch's predictions, and keeps its checkpoint where that is wished for."""
        if not writes_files(trainer):
            return
        if self.rows:
            step = trainer.global_step - 1
            shown = self._shown(trainer)
            self.logger.log_metrics({f"best/{key}": value for key, value in shown.items()}, step=step)
        if self.upload_best:
            self._upload()

    def state_dict(self) -> dict[str, Any]:
        """What the best epoch predicted, so that a resumed run can show it too."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.rows = [tuple(row) for row in state_dict["rows"]]

    def _tell_best(self, trainer: Trainer) -> None:
        if writes_files(trainer) and self.checkpoints.best:
            best = {f"best/{name}": value for name, value in self.checkpoints.best.items()}
            self.logger.tell(lambda run: run.summary.update(best))

    def _shown(self, trainer: Trainer) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        count = 1 + max(max(label, prediction) for _, label, prediction, _ in self.rows)
        names = list(getattr(data, "class_names", None) or map(str, range(count)))
        shown: dict[str, Any] = {
            "classes": classes_table(self.rows, names),
            "confusion": confusion_chart(self.rows, names),
        }
        # another datamodule than ours may not give its images by their places
        if self.images and hasattr(data, "val_images"):
            chosen = evenly(self.rows, self.images)
            wrong = sorted((row for row in self.rows if row[1] != row[2]), key=lambda row: -row[3])[: self.images]
            shown["samples"] = samples_table(chosen, _images(data, chosen), names)
            if wrong:
                shown["misclassified"] = pictures(wrong, _images(data, wrong), names)
        return shown

    def _upload(self) -> None:
        # W&B's import takes a second, which a run without it need not pay
        import wandb

        if not self.run.best.is_file():
            say("W&B keeps no checkpoint: without validation there is no best one")
            return
        artifact = wandb.Artifact(
            f"{self.run.experiment}-{self.run.id}", type="model", metadata=dict(self.checkpoints.best)
        )
        artifact.add_file(str(self.run.best), name=self.run.best.name)
        self.logger.tell(lambda run: run.log_artifact(artifact, aliases=["best"]))


def evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """So many rows at equal distances, the same in all runs on the same split; all where there are fewer."""
    if len(rows) <= count:
        return list(rows)
    return [rows[place * len(rows) // count] for place in range(count)]


def _images(data: Any, rows: Sequence[Row]) -> torch.Tensor:
    images: torch.Tensor = data.val_images(torch.tensor([row[0] for row in rows]))
    return images

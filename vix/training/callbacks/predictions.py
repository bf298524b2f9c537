"""What was predicted for each image, and the scores of `test`, put beside the run that they belong to."""

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from vix.training.callbacks.record import device
from vix.training.files import read_json, write_json, write_text
from vix.training.metrics import evaluation
from vix.training.processes import writes_files
from vix.training.runs import Run

# Apart from what `test` wrote: `predict` may be given other images.
PREDICT_FILE = "predict.csv"
COLUMNS = ("index", "label", "prediction", "probability")
Row = tuple[int, int, int, float]


class PredictionTable(Callback):
    """Collects predictions; after `test` writes them and the scores, after `predict` them alone.

    Args:
        run: The run whose folder gets them.
        checkpoint: The file that was tested, named in the results.
        at: Ends the names of what is written, where images are of another size than in training.
    """

    def __init__(self, run: Run, checkpoint: Path, *, at: str = "") -> None:
        self.run = run
        self.at = at
        self.checkpoint = checkpoint
        self.evaluation: dict[str, Any] = {}
        self._batches: list[tuple[torch.Tensor, ...]] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Keeps a batch's predictions on their device."""
        self._batches.append(tuple(outputs.values()))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Keeps a batch's predictions on their device."""
        self._batches.append(tuple(outputs.values()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the key `test` (at another size `test_64x64`) to results.json and writes predictions.csv."""
        rows = self._rows()
        if not writes_files(trainer):
            return
        scores = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("test/")}
        datamodule = getattr(trainer, "datamodule", None)
        labels, predictions = (torch.tensor([row[place] for row in rows]) for place in (1, 2))
        known = len(getattr(datamodule, "class_names", ()))
        classes = max(known, 1 + int(torch.cat([labels, predictions]).max()))
        self.evaluation = evaluation(labels, predictions, torch.tensor([row[3] for row in rows]), classes)
        test = {
            "checkpoint": self.checkpoint.name,
            **scores,
            **{f"test/{name}": value for name, value in self.evaluation.items()},
            "images": len(rows),
            "data": type(datamodule).__name__,
            "device": device(trainer),
            "written": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        write_text(self.named(self.run.predictions), table(rows))
        write_json(self.run.results, {**read_json(self.run.results), f"test{self.at}": test})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes predict.csv."""
        rows = self._rows()
        if writes_files(trainer):
            write_text(self.named(self.run.folder / PREDICT_FILE), table(rows))

    def named(self, path: Path) -> Path:
        """Where a file goes."""
        return path.with_stem(path.stem + self.at)

    def _rows(self) -> list[Row]:
        batches, self._batches = self._batches, []
        return gathered(batches)


def gathered(batches: Sequence[Sequence[torch.Tensor]]) -> list[Row]:
    """One row an image, by index, from all processes; in several of them all must call it.

    Args:
        batches: Of this process, each as the columns of `classifier.predict`.
    """
    columns = [torch.cat(column).cpu() for column in zip(*batches, strict=True)]
    parts: list[Any] = [columns]
    if dist.is_available() and dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, columns)
    return sorted({row[0]: row for part in parts for row in _zip(part)}.values())


def _zip(columns: list[torch.Tensor]) -> Iterator[Row]:
    return zip(*(column.tolist() for column in columns), strict=True)


def table(rows: list[Row]) -> str:
    """The rows as CSV under their names."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((index, label, prediction, f"{probability:.6f}") for index, label, prediction, probability in rows)
    return file.getvalue()

"""Predictions as W&B shows them: tables, pictures with captions, a confusion matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vix.training.callbacks.predictions import Row
from vix.training.metrics import evaluation

# W&B draws no table of more rows.
MOST_ROWS = 10_000
# Smaller images are enlarged by a whole factor, so that their pixels can be seen.
SIDE = 64


def samples_table(rows: Sequence[Row], images: Tensor, names: Sequence[str]) -> Any:
    """Images with what was predicted for them, one a row.

    Args:
        rows: Index, label, prediction and its probability of each.
        images: uint8 (n, c, y, x), in the rows' order.
        names: Of the classes.
    """
    import wandb

    columns: list[str | int] = ["image", "index", "label", "prediction", "probability", "right"]
    data = [
        [_picture(image), index, names[label], names[prediction], probability, label == prediction]
        for (index, label, prediction, probability), image in zip(rows, images, strict=True)
    ]
    return wandb.Table(columns=columns, data=data)


def pictures(rows: Sequence[Row], images: Tensor, names: Sequence[str]) -> list[Any]:
    """Images whose captions say what each is and what it was taken for; arguments as for `samples_table`."""
    return [
        _picture(image, f"{names[label]} taken for {names[prediction]} ({probability:.0%}), index {index}")
        for (index, label, prediction, probability), image in zip(rows, images, strict=True)
    ]


def classes_table(rows: Sequence[Row], names: Sequence[str]) -> Any:
    """One row a class: its images, how many were right, and what the others were most often taken for."""
    import wandb

    data = []
    counts = _confusion(rows, len(names))
    for label, name in enumerate(names):
        images, right = int(counts[label].sum()), int(counts[label, label])
        wrong = counts[label].clone()
        wrong[label] = 0
        mistake = names[int(wrong.argmax())] if wrong.any() else None
        data.append([name, images, right, right / images if images else None, mistake, int(wrong.max())])
    return wandb.Table(columns=["class", "images", "right", "top1", "taken for", "times"], data=data)


def confusion_chart(rows: Sequence[Row], names: Sequence[str]) -> Any:
    """The confusion matrix as W&B's chart; of more classes than that can draw as a picture, true classes downwards."""
    import wandb

    counts = _confusion(rows, len(names))
    if len(names) ** 2 > MOST_ROWS:
        shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
        return _picture((255 * shares).round().to(torch.uint8)[None], "rows: true class; columns: predicted")
    data = [
        [actual, predicted, int(counts[i, j])] for i, actual in enumerate(names) for j, predicted in enumerate(names)
    ]
    fields = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        data_table=wandb.Table(columns=[*fields], data=data),
        vega_spec_name="wandb/confusion_matrix/v1",
        fields={field: field for field in fields},
        string_fields={"title": "Confusion matrix of the best epoch's validation"},
    )


def _confusion(rows: Sequence[Row], classes: int) -> Tensor:
    _, labels, predictions, probabilities = (torch.tensor(column) for column in zip(*rows, strict=True))
    return torch.tensor(evaluation(labels, predictions, probabilities, classes)["confusion"])


def _picture(image: Tensor, caption: str | None = None) -> Any:
    import wandb

    factor = max(1, SIDE // max(image.shape[-2:]))
    large = image.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    pixels = large.permute(1, 2, 0).numpy()
    return wandb.Image(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, caption=caption)

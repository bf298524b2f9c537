"""Scores of a classification as true means over images, whatever the batch sizes and the number of processes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

SUMS = ("loss", "top1", "topk", "images")


class Scores(Metric):
    """Mean loss, top-1 and top-min(5, classes) accuracy over all images seen.

    Sums are kept on the device, so that a step never waits for the host. The top-k accuracy carries its k in its name
    (`top5`) and is left out where k would be 1. Where images are mixed, that of the larger share counts as the label,
    and the accuracies are named so: `top1_mixed`.
    """

    full_state_update = False
    loss: Tensor
    top1: Tensor
    topk: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.k = 1
        self.mixed = False
        for name in SUMS:
            self.add_state(name, torch.tensor(0.0 if name == "loss" else 0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds one batch.

        Args:
            loss: Mean loss of the batch, a scalar.
            logits: (b, classes).
            labels: (b,) classes, or (b, classes) shares of which the largest counts as the label.
        """
        self.mixed = labels.ndim == 2
        if self.mixed:
            labels = labels.argmax(dim=-1)
        self.k = min(5, logits.shape[-1])
        # top-k's first place is the top-1 as well, so one selection serves both
        hits = logits.topk(self.k, dim=-1).indices == labels[:, None]
        self.loss += loss.float() * len(labels)
        self.top1 += hits[:, 0].sum()
        self.topk += hits.sum()
        self.images += len(labels)

    def sums(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What each process saw so far; with `go_on` it takes the place of having seen it.

        Args:
            gather: The strategy's: sets the tensors of all processes in a row.
        """
        sums = {name: gather(getattr(self, name).clone()).reshape(-1) for name in SUMS}
        return {**sums, "k": self.k, "mixed": self.mixed}

    def go_on(self, sums: Mapping[str, Any], process: int, processes: int) -> None:
        """Adds what was seen before: by this process, or by all where they were not as many, to the first one's."""
        self.k, self.mixed = sums["k"], sums["mixed"]
        for name in SUMS:
            seen = sums[name].to(self.device)
            if len(seen) == processes:
                setattr(self, name, getattr(self, name) + seen[process])
            elif process == 0:
                setattr(self, name, getattr(self, name) + seen.sum())

    def compute(self) -> dict[str, Tensor]:
        """The means, by name: `loss`, `top1`, and `top<k>` where k > 1; of mixed images `top1_mixed`."""
        kind = "_mixed" if self.mixed else ""
        scores = {"loss": self.loss / self.images, f"top1{kind}": self.top1 / self.images}
        if self.k > 1:
            scores[f"top{self.k}{kind}"] = self.topk / self.images
        return scores


def evaluation(labels: Tensor, predictions: Tensor, probabilities: Tensor, classes: int) -> dict[str, Any]:
    """What a test says beyond its means, from one row an image, in plain types.

    Args:
        labels: The true class of each image, int64 (b,).
        predictions: The class thought likeliest, int64 (b,).
        probabilities: The probability it was given, (b,).
        classes: Number of classes.

    Returns:
        `calibration_error`; `class_top1`, the accuracy on each class's images (None where it has none); `confusion`,
        counts by true class, then by predicted class.
    """
    confusion = torch.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
    right, images = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    return {
        "calibration_error": calibration_error(labels == predictions, probabilities),
        "class_top1": [hits / count if count else None for hits, count in zip(right, images, strict=True)],
        "confusion": confusion.tolist(),
    }


def calibration_error(right: Tensor, probabilities: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean over images of how far their bin's accuracy is from its mean probability.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, equation 3.

    Args:
        right: Whether each prediction was right, bool (b,).
        probabilities: What each was given, 0 to 1, (b,).
        bins: Number of bins of equal width.
    """
    places = (probabilities.double() * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, places, right.double() - probabilities.double())
    return gaps.abs().sum().item() / max(1, len(right))

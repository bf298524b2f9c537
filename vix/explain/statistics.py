"""What a layer's rows say in numbers, added up part by part.

Shapes: h heads, r rows (queries), m keys, e width of a value.
"""

import math

import torch
from torch import Tensor

from vix.explain.mixing import Mixing, shares

SAMPLE, RANK_SAMPLE = 1024, 256
"""Queries, about, evenly spaced, that numbers are taken of, and the effective rank; all where there are no more."""


def effective_rank(rows: Tensor) -> Tensor:
    """Returns how many directions matrices (h r m) really have: exp of the entropy of their singular values' shares.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, equation 1.
    """
    return entropy(shares(torch.linalg.svdvals(rows))).exp()


def entropy(distribution: Tensor) -> Tensor:
    """Returns the entropy in nats along the last axis."""
    return -torch.xlogy(distribution, distribution).sum(dim=-1)


class Statistics:
    """Adds up the rows of one layer.

    Rows of a mechanism that is no mean (negative weights, or sums other than one) are read by the sizes of their
    weights as shares of the row; those of a softmax stay what they are.

    Args:
        mixing: The layer.
        image_size: Height and width in pixels.
    """

    def __init__(self, mixing: Mixing, image_size: tuple[int, int]) -> None:
        self.mixing = mixing
        queries, keys = mixing.places(image_size)
        self._queries, self._keys = queries, keys
        self._sums: dict[str, Tensor] = {}
        self._sampled: list[Tensor] = []
        n, device = mixing.queries.count, mixing.values.device
        self.sample = torch.arange(0, n, max(1, n // SAMPLE), device=device)
        self._for_rank = self.sample[:: max(1, len(self.sample) // RANK_SAMPLE)]

    def add(self, indices: Tensor, rows: Tensor) -> None:
        """Counts the rows (h r m) of some queries, those of them that are in the sample."""
        sampled = torch.isin(indices, self.sample)
        if not sampled.all():
            indices, rows = indices[sampled], rows[:, sampled]
        share = shares(rows)
        self._add("entropy", entropy(share).sum(dim=-1))
        self._add("distance", self._distances(indices, share).sum(dim=-1))
        self._add("row_sum", rows.sum(dim=(-2, -1)))
        self._add("size", rows.abs().sum(dim=(-2, -1)))
        self._add("negative", rows.clamp(max=0).abs().sum(dim=(-2, -1)))
        self._sampled.append(rows[:, torch.isin(indices, self._for_rank)])
        if self.mixing.exact is None or self.mixing.is_exact:
            return
        exact, rows = self.mixing.exact(indices), self.mixing.attention_rows(indices, rows)
        outputs, exact_outputs = rows @ self.mixing.values, exact @ self.mixing.values
        for name, difference, whole in (
            ("matrix", rows - exact, exact),
            ("output", outputs - exact_outputs, exact_outputs),
        ):
            self._add(f"{name}_difference", difference.square().sum(dim=(-2, -1)))
            self._add(f"{name}_whole", whole.square().sum(dim=(-2, -1)))

    def means(self) -> dict[str, Tensor]:
        """Returns one number a head (h,) by name.

        `entropy` in nats and `distance` in pixels are means over queries; `effective_rank` is of the sampled rows;
        `row_sum` is the mean sum of a row, `negative` the share of negative weights; `matrix_error` and `output_error`
        are the norms of what the matrix and its product with the values are off from those of exact softmax, divided by
        the norms of these, both without convolutions of the values; missing where there are no queries and keys.
        """
        queries, prefix = len(self.sample), self.mixing.queries.prefix
        sums = self._sums
        found = {
            "entropy": sums["entropy"] / queries,
            "distance": sums["distance"] / (queries - prefix),
            "effective_rank": effective_rank(torch.cat(self._sampled, dim=-2)),
            "row_sum": sums["row_sum"] / queries,
            "negative": sums["negative"] / sums["size"],
        }
        if self.mixing.is_exact:
            zero = torch.zeros_like(found["entropy"])
            return found | {"matrix_error": zero, "output_error": zero}
        if self.mixing.exact is not None:
            for name in ("matrix", "output"):
                found[f"{name}_error"] = (sums[f"{name}_difference"] / sums[f"{name}_whole"]).sqrt()
        return found

    def uniform(self) -> dict[str, float]:
        """What attention to all keys alike would have: its entropy in nats and mean distance in pixels."""
        # In parts, as one query meets every key.
        total = sum(torch.cdist(part, self._keys).mean(dim=-1).sum().item() for part in self._queries.split(256))
        return {"entropy": math.log(self.mixing.keys.count), "distance": total / len(self._queries)}

    def _distances(self, indices: Tensor, share: Tensor) -> Tensor:
        """Mean distance (h r) to the keys of each query on the grid; class tokens stand nowhere."""
        standing = indices >= self.mixing.queries.prefix
        there = shares(share[:, standing, self.mixing.keys.prefix :])
        apart = torch.cdist(self._queries[indices[standing] - self.mixing.queries.prefix], self._keys)
        return (there * apart).sum(dim=-1)

    def _add(self, name: str, amount: Tensor) -> None:
        self._sums[name] = self._sums[name] + amount if name in self._sums else amount

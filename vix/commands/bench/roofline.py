"""The machine's own roofline: its matrix rate at the shapes of the nets at hand, and its bandwidth, measured.

Source: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model", CACM 52(4), 2009.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vix.commands.bench.timing import seconds_of

PROBES = 15
COPIED = 2**28
MOST_OPERANDS = 2**28
aten = torch.ops.aten
# The place of the left factor among the arguments.
ADDED = (aten.addmm, aten.addmm_, aten.addbmm, aten.addbmm_, aten.baddbmm, aten.baddbmm_)
PRODUCTS = {aten.mm: 0, aten.bmm: 0, **dict.fromkeys(ADDED, 1)}


@dataclass(frozen=True)
class Product:
    """A matrix product, or a batch of them: (batch rows inner) times (batch inner columns)."""

    batch: int
    rows: int
    inner: int
    columns: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Its operations, a multiply-add counted as two."""
        return 2 * self.batch * self.rows * self.inner * self.columns


class Products(TorchDispatchMode):
    """Counts the matrix products that run inside it, by their shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and takes note of it if it is a product."""
        first = PRODUCTS.get(func.overloadpacket)
        if first is not None:
            left, right = args[first], args[first + 1]
            *batch, rows, inner = left.shape
            self.counts[Product(math.prod(batch), rows, inner, right.shape[-1], left.dtype)] += 1
        elif func.overloadpacket is aten.convolution and args[1].shape[2:] == (1, 1):
            self._take(args[0], args[1], ("forward",))
        elif func.overloadpacket is aten.convolution_backward and args[2].shape[2:] == (1, 1):
            passes = (name for name, asked in zip(("input", "weight"), args[10], strict=False) if asked)
            self._take(args[1], args[2], passes)
        return func(*args, **(kwargs or {}))

    def _take(self, x: Any, weight: Any, passes: Iterable[str]) -> None:
        """Counts a convolution of one pixel as the products that it is."""
        rows, (out, inner) = x.numel() // x.shape[1], weight.shape[:2]
        shapes = {"forward": (rows, inner, out), "input": (rows, out, inner), "weight": (out, rows, inner)}
        for name in passes:
            self.counts[Product(1, *shapes[name], x.dtype)] += 1


def _seconds_of(product: Product, device: torch.device) -> float:
    one = product.rows * product.inner + product.inner * product.columns + product.rows * product.columns
    # A long batch has the rate of a shorter one, and fits.
    batch = min(product.batch, max(1, MOST_OPERANDS // (one * product.dtype.itemsize)))
    sides = ((product.rows, product.inner), (product.inner, product.columns), (product.rows, product.columns))
    # Written once, so that no page is touched first by the clock.
    left, right, out = (torch.full((batch, *side), 0.5, dtype=product.dtype, device=device) for side in sides)
    multiply = partial(torch.mm, left[0], right[0], out=out[0])
    if batch > 1:
        multiply = partial(torch.bmm, left, right, out=out)
    return seconds_of(multiply, device) * product.batch / batch


class Roofline:
    """Measures matrix rate and bandwidth, a probe at a time between the timed steps; the best of the probes counts.

    Args:
        device: What is measured.
        products: The matrix products whose shapes are timed.
    """

    def __init__(self, device: torch.device, products: Iterable[Product]) -> None:
        self.device = device
        self.best: dict[Product, float] = dict.fromkeys(products, math.inf)
        self.best_copy = math.inf
        self.probes = 0
        self.source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)

    def probe(self) -> None:
        """Times each product and a copy once, until there were 15 probes."""
        if self.probes == PROBES:
            return
        self.probes += 1
        for product in self.best:
            self.best[product] = min(self.best[product], _seconds_of(product, self.device))
        self.best_copy = min(self.best_copy, seconds_of(lambda: self.target.copy_(self.source), self.device))

    def matrix_rate(self, counts: Mapping[Product, int]) -> float:
        """Returns the operations a second at which these products run, each at its best."""
        seconds = sum(times * self.best[product] for product, times in counts.items())
        return sum(times * product.flops for product, times in counts.items()) / seconds if seconds else math.inf

    @property
    def bandwidth(self) -> float:
        """Bytes read and written a second by a long copy."""
        return 2 * COPIED / self.best_copy

    def seconds(self, flops: int, moved: int, counts: Mapping[Product, int]) -> float:
        """Returns the least time that this machine needs.

        Args:
            flops: Operations of a step, all at the rate of its matrix products.
            moved: Bytes that cannot but be moved.
            counts: The step's matrix products.
        """
        return max(flops / self.matrix_rate(counts), moved / self.bandwidth)

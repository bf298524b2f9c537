"""What a layer does to its tokens, as a matrix that is never built where it would not fit.

For fixed queries and keys a kernel is linear in its values, so values that are the identity matrix come out as the
kernel's own n x m matrix; and a backward pass from one output token gives one row of it.
Shapes: h heads, n query tokens, m key tokens, r rows, e width of a value, y x the grid.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from vix.tokens import Tokens

Linear = Callable[[Tensor], Tensor]
"""A linear map of values (1 h m e), the same for each of their e columns."""
AT_ONCE = 2**24
"""Numbers (heads x n x m) up to which a layer's matrix is built whole: 64 MiB in float32. Above, rows come in parts."""


@dataclass(frozen=True)
class Window:
    """Which tokens a strided convolution sees from each place, and how much: the mean size of its weights.

    Args:
        filter: Positive weights (k k).
        stride: Every how many places along each axis there is an output.
        padding: Zeros around the map.
        inputs: The tokens of the map.
        outputs: The tokens that come out; class tokens pass by the convolution.
    """

    filter: Tensor
    stride: int
    padding: int
    inputs: Tokens
    outputs: Tokens

    def pull(self, weights: Tensor) -> Tensor:
        """Hands weights of the outputs (m,) back to the inputs (n,); the sum stays, but for class tokens that joined.

        Each output shares its weight among the places that its window really covers.
        """
        prefix, grid = weights.split([self.outputs.prefix, len(weights) - self.outputs.prefix])
        with torch.enable_grad():
            y, x = self.inputs.grid
            seen = torch.ones(1, 1, y, x, dtype=weights.dtype, device=weights.device, requires_grad=True)
            kernel = self.filter[None, None].to(weights)
            totals = torch.nn.functional.conv2d(seen, kernel, stride=self.stride, padding=self.padding)
            (pulled,) = torch.autograd.grad(totals, seen, grid.view_as(totals) / totals.detach())
        return torch.cat([prefix[: self.inputs.prefix], pulled.flatten()])


@dataclass(frozen=True)
class Mixing:
    """How one layer mixed the tokens of one image.

    Args:
        name: Path of the module in the net.
        kind: Name of the mechanism's class.
        heads: Name of each head.
        queries: The tokens that come out.
        keys: The tokens that go in.
        values: What was mixed (h m e).
        apply: The layer for fixed queries and keys: linear, from values (1 h m e) of any width e to (1 h n e).
        added: The part of it that is a convolution of the values and no attention; None where there is none.
        exact: Gives the rows (h r m) of exact softmax attention with the same queries and keys, for some indices; None
            where the mechanism has none.
        is_exact: Whether the layer is softmax attention, so that those rows are its own.
        has_residual: Whether the layer's input is added to its output.
        window: Which tokens each key was made of; None where it was made of one.
    """

    name: str
    kind: str
    heads: tuple[str, ...]
    queries: Tokens
    keys: Tokens
    values: Tensor
    apply: Linear
    added: Linear | None = None
    exact: Callable[[Tensor], Tensor] | None = None
    is_exact: bool = False
    has_residual: bool = True
    window: Window | None = None

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """Returns the matrix (h n m) that maps values to outputs: what becomes of values that are the identity."""
        identity = torch.eye(self.keys.count, dtype=self.values.dtype, device=self.values.device)
        return self.apply(identity.expand(1, len(self.heads), -1, -1))[0]

    def rows(self, indices: Tensor) -> Tensor:
        """Returns some rows (h r m) of the matrix: what the output at these tokens takes from each key.

        Cost: one forward and backward of the kernel with values of width r.
        """
        if self.is_exact and self.exact is not None:
            return self.exact(indices)
        return self._rows(self.apply, indices)

    def attention_rows(self, indices: Tensor, rows: Tensor) -> Tensor:
        """Returns rows (h r m) of attention alone, without the convolutions of values that are added to it."""
        return rows if self.added is None else rows - self._rows(self.added, indices)

    def _rows(self, function: Linear, indices: Tensor) -> Tensor:
        shape = (1, len(self.heads), self.keys.count, len(indices))
        with torch.enable_grad():
            values = torch.zeros(shape, dtype=self.values.dtype, device=self.values.device, requires_grad=True)
            out = function(values)
            chosen = torch.zeros_like(out)
            chosen[:, :, indices, torch.arange(len(indices), device=out.device)] = 1
            (rows,) = torch.autograd.grad(out, values, chosen)
        return rows[0].mT

    def parts(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields some rows, each part as its indices (r,) and rows (h r m); small matrices come whole."""
        size = len(self.heads) * self.keys.count
        if self.queries.count * size <= AT_ONCE and not self.is_exact:
            yield indices, self.matrix()[:, indices]
            return
        # A backward pass holds a few times what it returns.
        for part in indices.split(max(1, AT_ONCE // (4 * size))):
            yield part, self.rows(part)

    def places(self, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns the centres, (y, x) in pixels, of the grids of queries (n 2) and keys (m 2), without class tokens.

        The coarser of two grids stands on every second, third ... token of the finer, from the first one on.
        """
        finest = tuple(map(max, self.queries.grid, self.keys.grid))

        def centres(tokens: Tokens) -> Tensor:
            axes = []
            for count, fine, side in zip(tokens.grid, finest, image_size, strict=True):
                stride = next(step for step in range(1, fine + 1) if math.ceil(fine / step) == count)
                axes.append((torch.arange(count) * stride + 0.5) * (side / fine))
            return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1).to(self.values)

        return centres(self.queries), centres(self.keys)


def on_grid(weights: Tensor, tokens: Tokens) -> Tensor:
    """Sets weights of tokens (... n) on their grid (... y x), without class tokens."""
    return rearrange(weights[..., tokens.prefix :], "... (y x) -> ... y x", y=tokens.grid[0])


def shares(rows: Tensor) -> Tensor:
    """Returns sizes that sum to one along the last axis: themselves for rows of a softmax, zeros for zeros."""
    sizes = rows.abs()
    return sizes / sizes.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def mean_of_heads(rows: Tensor) -> Tensor:
    """Returns the shares (r m) of all heads (h r m) together, each weighed by its size: the mean for a softmax."""
    return shares(rows.abs().sum(dim=0))

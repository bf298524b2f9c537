"""Small layers that every body shares, and the rule for precision.

Shapes: b batch, n tokens, c width.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def widen(x: Tensor) -> Tensor:
    """Returns half-precision values as float32; float32 and float64 stay what they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Runs a function of tensors in at least float32 with autocast off; the result has the first tensor's dtype.

    What exponentiates, inverts or transforms loses its meaning in eight bits of mantissa; everything around it need not
    pay.
    """

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Tensor:
        first = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            out = function(*(widen(argument) if isinstance(argument, Tensor) else argument for argument in arguments))
        return out.to(first.dtype)

    return wrapped


class FeedForward(nn.Module):
    """Mixes channels: linear, GELU, linear, each token by itself.

    Args:
        dim: Width of a token, in and out.
        hidden: Width between the two.
        dropout: Probability of dropping a value after either linear map.
    """

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b n c) to (b n c)."""
        x = self.dropout(self.activation(self.expand(x)))
        return self.dropout(self.contract(x))


class DropPath(nn.Module):
    """Drops a whole residual branch for a random part of the images of a batch, and keeps the expectation.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.

    Args:
        rate: Probability that an image skips the branch, in [0, 1).

    Raises:
        ValueError: If the rate is outside [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps the branch's output (b ...) to itself, or to zero for the images that skip it."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (kept / keep)

    def extra_repr(self) -> str:
        """The rate, for print(net)."""
        return f"rate={self.rate}"

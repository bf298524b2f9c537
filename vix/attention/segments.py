"""Landmarks of a sequence: means over runs of neighbouring tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def segment_means(x: Tensor, segments: int) -> Tensor:
    """Returns the means (b h s d) of s runs of neighbouring tokens of (b h n d), whose lengths differ by one at most.

    The longer runs come first, so both kinds are a plain reshape.
    """
    length, longer = divmod(x.shape[-2], segments)
    if not longer:
        return x.unflatten(-2, (segments, length)).mean(dim=-2)
    head, tail = x.split([longer * (length + 1), (segments - longer) * length], dim=-2)
    means = [head.unflatten(-2, (longer, length + 1)).mean(dim=-2)]
    means.append(tail.unflatten(-2, (segments - longer, length)).mean(dim=-2))
    return torch.cat(means, dim=-2)


class WithMeans(torch.autograd.Function):
    """Gives tokens back with the means of their runs, equal in length, so that both gradients join in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """Maps (b h n d) to itself and to (b h s d)."""
        return x.view_as(x), segment_means(x, segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_means: Tensor) -> tuple[Tensor, None]:
        """Maps the gradients of both to that of the tokens."""
        segments = grad_means.shape[-2]
        runs = grad.unflatten(-2, (segments, -1))
        return runs.add(grad_means.unsqueeze(-2), alpha=segments / grad.shape[-2]).flatten(-3, -2), None


def with_means(x: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Returns tokens (b h n d) as they are and their `segment_means`; whoever reads both should read these."""
    if x.shape[-2] % segments or torch.compiler.is_compiling():
        return x, segment_means(x, segments)
    return WithMeans.apply(x, segments)

"""A depth-wise convolution along the tokens as products with a band matrix, for CPUs that are poor at the former.

Such are those for which torch has no oneDNN, and all in double precision: `vix.attention.depthwise` is for the others.

Shapes: b batch, h heads, n tokens, e width of a value, t taps, s runs of tokens, i a run's tokens, w a window's.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

RUN = 32
"""Tokens that one product makes: more would multiply more zeros, fewer would be too small a product."""


def band(taps: Tensor) -> Tensor:
    """Writes the filters (h t) as the matrices (h i w) that map the window of a run to the run."""
    h, t = taps.shape
    # Rows one longer than the matrix shift the filter by one token each.
    rows = functional.pad(taps, (0, RUN)).repeat(1, RUN)[:, : RUN * (RUN + t - 1)]
    return rows.view(h, RUN, RUN + t - 1)


def windows(x: Tensor, t: int) -> Tensor:
    """Copies the window of each run of tokens of (b h n e) into (h w (b s e)), with zeros around the sequence."""
    n = x.shape[-2]
    padded = functional.pad(x, (0, 0, t // 2, -n % RUN + t // 2))
    return rearrange(padded.unfold(-2, RUN + t - 1, RUN), "b h s e w -> h w (b s e)")


def runs_to_tokens(out: Tensor, like: Tensor) -> Tensor:
    """Maps runs of outputs (h i (b s e)) to tokens like (b h n e)."""
    return rearrange(out, "h i (b s e) -> b h (s i) e", b=like.shape[0], e=like.shape[-1])[:, :, : like.shape[-2]]


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    """Convolves (b h n e) along n with one odd filter a head (h t), as `nn.Conv2d` with zero padding does."""
    return runs_to_tokens(band(taps) @ windows(x, taps.shape[-1]), x)


class BandConvolution(torch.autograd.Function):
    """`convolve` with a gradient that keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        """Maps (b h n e) and the filters (h t) to (b h n e)."""
        ctx.save_for_backward(x, taps)
        return convolve(x, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Maps the gradient of the output to those of the input and of the filters."""
        x, taps = ctx.saved_tensors
        t = taps.shape[-1]
        # One copy for both: seen from a token, the outputs that it went into are the taps backwards.
        around = windows(grad, t)
        grad_x = runs_to_tokens(band(taps.flip(-1)) @ around, x)
        matrix = windows(x, 1) @ around.mT
        rows = functional.pad(matrix.flatten(1), (0, RUN)).unflatten(1, (RUN, RUN + t))
        return grad_x, rows[..., :t].sum(dim=1).flip(-1)

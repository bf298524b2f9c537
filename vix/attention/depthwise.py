"""A depth-wise convolution along the tokens, one filter a head, with all widths of all heads as channels of one line.

Shapes: b batch, h heads, n tokens, e width of a value, t taps.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def side_by_side(x: Tensor) -> Tensor:
    """Maps values (b h n e) to (b n c) with all channels of a token side by side in memory."""
    copy = rearrange(x, "b h n e -> b n (h e)").contiguous()
    # Seen as a line first: then the step from image to image is right for a single one too, where torch allows any.
    return copy.view(-1).view(copy.shape)


def rows(x: Tensor) -> Tensor:
    """Sees (b n c) as images (b c 1 n) of one row."""
    return x[:, None].permute(0, 3, 1, 2)


def columns(x: Tensor) -> Tensor:
    """Sees (b n c) as images (b c n 1) of one column; oneDNN errs where the step beside it is not that of a pixel."""
    return x[:, :, None].permute(0, 3, 1, 2)


def convolve(x: Tensor, taps: Tensor, width: int) -> Tensor:
    """Convolves (b n c), heads of a width, with one filter a head (h t), and gives (b h n e)."""
    weight = repeat(taps, "h t -> (h e) 1 1 t", e=width)
    out = functional.conv2d(rows(x), weight, padding=(0, taps.shape[-1] // 2), groups=len(weight))
    return rearrange(out, "b (h e) 1 n -> b h n e", e=width)


class DepthwiseConvolution(torch.autograd.Function):
    """Convolves (b h n e) along n with one odd filter a head (h t), as `nn.Conv2d` with zero padding does.

    Its gradient keeps its input alone, which a projection made and keeps anyway, and not the copy of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        """Maps (b h n e) and the filters (h t) to (b h n e)."""
        ctx.save_for_backward(x, taps)
        return convolve(side_by_side(x), taps, x.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Maps the gradient of the output to those of the input and of the filters."""
        x, taps = ctx.saved_tensors
        t, e = taps.shape[-1], x.shape[-1]
        around = side_by_side(grad)
        # Seen from a token, the outputs that it went into are the taps backwards.
        grad_x = convolve(around, taps.flip(-1), e)
        weight = repeat(taps, "h t -> (h e) 1 t 1", e=e)
        # In columns: oneDNN's gradient of filters along the rows of an image takes ten times as long.
        _, grad_weight, _ = torch.ops.aten.convolution_backward(
            columns(around),
            columns(side_by_side(x)),
            weight,
            None,
            [1, 1],
            [t // 2, 0],
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [False, True, False],
        )
        return grad_x, rearrange(grad_weight, "(h e) 1 t 1 -> h e t", e=e).sum(dim=1)

"""Fourier mixing: the real part of a transform over tokens and channels, without parameters.

Source: Lee-Thorp et al., "FNet: Mixing Tokens with Fourier Transforms", NAACL 2022, arXiv:2105.03824, equation 3.
Cost: O(n c log(n c)) time and no memory of its own.
"""

from typing import Any

import torch
from torch import Tensor

from vix.layers import widen
from vix.mixers.base import Mixer
from vix.tokens import Tokens


def real_transform(x: Tensor) -> Tensor:
    """Returns the real part of the unnormalised DFT over the last two axes of real values (b n c).

    Half the spectrum along the channels is enough: F(-u, -v) is the conjugate of F(u, v), so the rest is a mirror.
    """
    channels = x.shape[-1]
    half = torch.fft.fft(torch.fft.rfft(x), dim=-2).real
    out = x.new_empty(x.shape)
    out[..., : half.shape[-1]] = half
    mirrored = half[..., 1 : (channels + 1) // 2]
    out[..., :1, half.shape[-1] :] = mirrored[..., :1, :].flip(-1)
    out[..., 1:, half.shape[-1] :] = mirrored[..., 1:, :].flip((-2, -1))
    return out


class RealTransform(torch.autograd.Function):
    """`real_transform` with its gradient: its matrix is symmetric, so backward is the same and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Maps (b n c) to (b n c)."""
        return real_transform(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Maps the gradient (b n c) to that of the input."""
        return RealTransform.apply(grad)


class FourierMixing(Mixer):
    """Takes the real part of the unnormalised DFT over tokens and channels, class tokens included.

    Values grow by about sqrt(n c / 2) and leave float16's range, so float16 comes back as float32.

    Args:
        dim: Width of a token; any width will do.
        tokens: The tokens that it is built for; any number will do.
    """

    def __init__(self, dim: int, tokens: Tokens) -> None:
        super().__init__()

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        with torch.autocast(x.device.type, enabled=False):
            wide = widen(x)
            mixed = torch.fft.fft2(wide).real if torch.compiler.is_compiling() else RealTransform.apply(wide)
        return mixed if x.dtype == torch.float16 else mixed.to(x.dtype)

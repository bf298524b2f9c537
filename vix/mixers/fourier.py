"""Fourier mixing: the real part of a transform over tokens and channels, without parameters.

Source: Lee-Thorp et al., "FNet: Mixing Tokens with Fourier Transforms", NAACL 2022, arXiv:2105.03824, equation 3.
Cost: O(n c log(n c)) time and no memory of its own.
"""

import torch
from torch import Tensor

from vix.layers import widen
from vix.mixers.base import Mixer
from vix.tokens import Tokens


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
            mixed = torch.fft.fft2(widen(x)).real
        return mixed if x.dtype == torch.float16 else mixed.to(x.dtype)

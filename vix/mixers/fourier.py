"""Fourier mixing: the real part of a transform over tokens and channels, without parameters.

Source: Lee-Thorp et al., "FNet: Mixing Tokens with Fourier Transforms", NAACL 2022, arXiv:2105.03824, equation 3.
Cost: O(n c log(n c)) time and no memory of its own.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vix.layers import widen
from vix.mixers.base import Mixer
from vix.tokens import Tokens

SHORTEST, LARGEST_FACTOR = 512, 64
"""Of lengths that are transformed by products, and of their factors: beyond, an FFT costs less."""
FAST_PRIME = 31
"""The largest prime factor of lengths for which FFTs of CPUs are fast."""


@cache
def coprime_factors(n: int) -> tuple[int, int] | None:
    """Splits a length that is slow to transform into two small coprime factors; None where an FFT does better."""
    for first in range(math.isqrt(n) if n >= SHORTEST else 0, 1, -1):
        second = n // first
        if n % first == 0 and math.gcd(first, second) == 1 and second <= LARGEST_FACTOR:
            prime = any(all(each % d for d in range(2, each)) for each in (first, second) if each > FAST_PRIME)
            return (first, second) if prime else None
    return None


def waves_of_factors(p: int, q: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the DFT matrices of two coprime factors p and q of n, and the order of values before and after them.

    With j = q a + p b before and k = k mod p, k mod q behind, exp(-2 pi i j k / n) is the product of the waves of a and
    of b alone.
    """
    k = torch.arange(p * q)
    before = (q * k[:p, None] + p * k[:q]).flatten() % (p * q)
    first, second = (torch.complex(*waves(factor, like)) for factor in (p, q))
    return first, second, before, k % p * q + k % q


def half_transform(x: Tensor) -> Tensor:
    """Returns the real part of the DFT over the last two axes of (b n c) up to the middle of the channels (b n c/2+1).

    FFTs of CPUs are slow at lengths with a large prime factor, such as the 1,025 = 25 x 41 tokens of 32x32 pixels and a
    class token. Two products with small matrices of waves are then faster (the prime factor algorithm: Good, "The
    Interaction Algorithm and Practical Fourier Analysis", Journal of the Royal Statistical Society B 20, 1958).
    """
    half = torch.fft.rfft(x)
    b, n, c = half.shape
    factors = coprime_factors(n) if x.device.type == "cpu" else None
    if factors is None:
        return torch.fft.fft(half, dim=-2).real
    p, q = factors
    first, second, before, behind = waves_of_factors(p, q, x)
    half = first @ half.index_select(-2, before).view(b, p, q * c)
    return (second @ half.view(b * p, q, c)).real.reshape(b, n, c).index_select(-2, behind)


def real_transform(x: Tensor) -> Tensor:
    """Returns the real part of the unnormalised DFT over the last two axes of real values (b n c).

    Half the spectrum along the channels is enough: F(-u, -v) is the conjugate of F(u, v), so the rest is a mirror.
    """
    channels = x.shape[-1]
    half = half_transform(x)
    out = x.new_empty(x.shape)
    out[..., : half.shape[-1]] = half
    mirrored = half[..., 1 : (channels + 1) // 2]
    out[..., :1, half.shape[-1] :] = mirrored[..., :1, :].flip(-1)
    out[..., 1:, half.shape[-1] :] = mirrored[..., 1:, :].flip((-2, -1))
    return out


def waves(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cos and sin of -2 pi j k / n (n n), each exact to a rounding: j k is first taken modulo n."""
    steps = torch.arange(n, device=like.device)
    turns = steps.outer(steps) % n
    angles = [-2 * math.pi * step / n for step in range(n)]
    cosine, sine = (
        torch.tensor([wave(angle) for angle in angles], dtype=like.dtype, device=like.device)[turns]
        for wave in (math.cos, math.sin)
    )
    return cosine, sine


def transform_by_products(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Returns the real part of the unnormalised DFT over some axes by products with matrices of waves.

    Costs more than an FFT and is for exported nets: products run everywhere, transforms do not.
    """
    real, imaginary = x, None
    for dim in dims:
        cosine, sine = waves(x.shape[dim], x)
        turned = real.transpose(dim, -1)
        real, wave = turned @ cosine, turned @ sine
        if imaginary is not None:
            turned = imaginary.transpose(dim, -1)
            real, wave = real - turned @ sine, wave + turned @ cosine
        real, imaginary = real.transpose(dim, -1), wave.transpose(dim, -1)
    return real


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


@torch.library.custom_op("vix::real_transform", mutates_args=())
def opaque_transform(x: Tensor) -> Tensor:
    """Does `real_transform` where compilers do not look in: they have no code of their own for complex numbers."""
    return real_transform(x)


@opaque_transform.register_fake
def _shape_of_transform(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _transform_gradient(ctx: Any, grad: Tensor) -> Tensor:
    return opaque_transform(grad)


opaque_transform.register_autograd(_transform_gradient)


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
            if torch.compiler.is_exporting():
                mixed = transform_by_products(wide, (-1, -2))
            else:
                mixed = opaque_transform(wide) if torch.compiler.is_compiling() else RealTransform.apply(wide)
        return mixed if x.dtype == torch.float16 else mixed.to(x.dtype)

    def first(self, x: Tensor, tokens: Tokens, count: int) -> Tensor:
        """Maps the same to the first tokens (b count c) alone: of one, the transform of the sum of all."""
        if count != 1:
            return super().first(x, tokens, count)
        mixed = self(widen(x).sum(dim=1, keepdim=True), tokens)
        return mixed if x.dtype == torch.float16 else mixed.to(x.dtype)

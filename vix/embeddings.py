"""From pixels to tokens: a linear map of patches, or a convolutional stem.

Shapes: b batch, c width, y x the grid (of pixels in, of tokens out), p q the sides of a patch.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

Embedding = Literal["linear", "linear_normed", "convolutional"]
"""How a net makes tokens of pixels; `linear_normed` has normalisations around the linear map."""

MOST_TOKENS = 1024


def default_patch(image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the smallest patch (height, width) that gives at most 1,024 tokens, a square where one divides."""
    height, width = image_size
    fits = [
        (p, q)
        for p in range(1, height + 1)
        for q in range(1, width + 1)
        if height % p == 0 and width % q == 0 and (height // p) * (width // q) <= MOST_TOKENS
    ]
    return min(fits, key=lambda sides: (sides[0] != sides[1], sides[0] * sides[1], abs(sides[0] - sides[1])))


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Returns how many patches fit along height and width.

    Raises:
        ValueError: If the patch does not divide the image.
    """
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        height, width = (
            ", ".join(str(side) for side in range(1, image + 1) if image % side == 0) for image in image_size
        )
        raise ValueError(
            f"patch_size {patch_size[0]}x{patch_size[1]} does not divide image_size {image_size[0]}x{image_size[1]}: "
            f"the height takes {height}" + ("" if image_size[0] == image_size[1] else f"; the width takes {width}")
        )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


class LinearEmbedding(nn.Module):
    """Cuts the image into patches and maps each by the same linear map.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, equation 1.

    Args:
        channels: Channels of the image.
        dim: Width of a token.
        patch_size: Height and width of a patch, in pixels.
        norms: Whether to normalise the patch before and the token after, as the package `vision_xformer` does. With
            patches of one pixel the first of them removes all brightness.
    """

    def __init__(self, channels: int, dim: int, patch_size: tuple[int, int], *, norms: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        width = channels * patch_size[0] * patch_size[1]
        self.patch_norm = nn.LayerNorm(width) if norms else nn.Identity()
        self.project = nn.Linear(width, dim)
        self.token_norm = nn.LayerNorm(dim) if norms else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Maps (b c y x) in pixels to (b y x c) in tokens; a patch's values are ordered row, column, channel."""
        p, q = self.patch_size
        grid_of((images.shape[-2], images.shape[-1]), self.patch_size)
        patches = rearrange(images, "b c (y p) (x q) -> b y x (p q c)", p=p, q=q)
        return self.token_norm(self.project(self.patch_norm(patches)))


def factorise(stride: int) -> tuple[int, int, int]:
    """Splits a stride over three convolutions, the larger factors first: 8 is 2, 2, 2 and 12 is 3, 2, 2."""
    factors, rest, prime = [1, 1, 1], stride, 2
    primes = []
    while rest > 1:
        while rest % prime == 0:
            primes.append(prime)
            rest //= prime
        prime += 1
    for prime in sorted(primes, reverse=True):
        smallest = factors.index(min(factors))
        factors[smallest] *= prime
    first, second, third = sorted(factors, reverse=True)
    return first, second, third


class ConvolutionalEmbedding(nn.Module):
    """Makes tokens by three convolutions (channels, 32, 64, dim), 3x3 as published, with nothing between them.

    Source: Jeevan and Sethi, "Resource-efficient Hybrid X-formers for Vision", WACV 2022, arXiv:2107.02239. There its
        stride is always 1; here the strides multiply up to the patch, and a stride above 3 gets a kernel as wide, so
        that no pixel is skipped.

    Args:
        channels: Channels of the image.
        dim: Width of a token.
        patch_size: Total stride (height, width), in pixels.
    """

    def __init__(self, channels: int, dim: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        widths = (channels, 32, 64, dim)
        strides = list(zip(factorise(patch_size[0]), factorise(patch_size[1]), strict=True))
        self.stem = nn.Sequential()
        for before, after, stride in zip(widths, widths[1:], strides, strict=False):
            # As much padding as a kernel is wider than its stride gives exactly one token a stride, centred on it.
            kernel = (max(3, stride[0] | 1), max(3, stride[1] | 1))
            padding = ((kernel[0] - stride[0] + 1) // 2, (kernel[1] - stride[1] + 1) // 2)
            self.stem.append(nn.Conv2d(before, after, kernel, stride, padding))

    def forward(self, images: Tensor) -> Tensor:
        """Maps (b c y x) in pixels to (b y x c) in tokens."""
        grid_of((images.shape[-2], images.shape[-1]), self.patch_size)
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        return rearrange(x, "b c y x -> b y x c").contiguous()


EMBEDDINGS: dict[str, Callable[[int, int, tuple[int, int]], nn.Module]] = {
    "linear": LinearEmbedding,
    "linear_normed": partial(LinearEmbedding, norms=True),
    "convolutional": ConvolutionalEmbedding,
}

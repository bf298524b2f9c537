"""Parts that the LeViT, CvT and CCT bodies share: sizes of grids, arguments by stage, BatchNorm that folds away.

Shapes: b batch, n tokens, c width, y x the map.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vix.embeddings import MOST_TOKENS
from vix.layers import check_counts
from vix.tokens import Tokens

LEAST_SIDE = 8
PerStage = int | tuple[int, ...]
"""One number for every stage, or one for each."""


def check_sides(height: int, width: int) -> None:
    """Refuses images of which too little would be left after the last stage.

    Raises:
        ValueError: If a side is below 8 pixels.
    """
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"image_size must be at least {LEAST_SIDE} pixels on each side, got {height}x{width}")


def per_stage(value: int | Sequence[int], stages: int, name: str) -> tuple[int, ...]:
    """Reads an argument that is one number for all stages, or one for each.

    Raises:
        ValueError: If it is neither, or a number is not positive.
    """
    values: tuple[Any, ...] = tuple(value) if isinstance(value, list | tuple) else (value,) * stages
    if len(values) != stages or not all(type(each) is int and each > 0 for each in values):
        raise ValueError(f"{name} must be a positive whole number, or {stages} of them (as many as dim), got {value!r}")
    if name == "depth":
        check_counts(depth=sum(values))
    return values


def growing(rate: float, depth: int) -> list[float]:
    """Spreads a rate of stochastic depth over the blocks of a net: 0 at the first, all of it at the last."""
    # A single block is the last one, not the first.
    return [rate * index / (depth - 1) for index in range(depth)] if depth > 1 else [rate]


def default_stride(image_size: tuple[int, int]) -> int:
    """Returns the smallest power of two that leaves at most 1,024 tokens of an image: 1 for 32x32, 2 for 64x64."""
    stride = 1
    while strided(Tokens(image_size), stride).count > MOST_TOKENS:
        stride *= 2
    return stride


def strided(tokens: Tokens, stride: int) -> Tokens:
    """Returns the tokens that a padded convolution of odd kernel leaves: every `stride`-th, rounded up."""
    rows, columns = tokens.grid
    return Tokens((-(-rows // stride), -(-columns // stride)), tokens.prefix)


def to_map(x: Tensor, tokens: Tokens) -> Tensor:
    """Maps tokens (b n c), of which none is a class token, to a map (b c y x)."""
    return rearrange(x, "b (y x) c -> b c y x", y=tokens.grid[0])


def to_tokens(x: Tensor) -> Tensor:
    """Maps a map (b c y x) to tokens (b n c), each in one piece of memory.

    Tokens that are a view of a map lie channel by channel, and so would all that is added to them: every linear map
    behind them would copy them again.
    """
    return rearrange(x, "b c y x -> b (y x) c").contiguous()


class BatchNorm(nn.BatchNorm1d):
    """Normalises each channel of (b c) or (b c y x) over the batch; in eval mode by the running statistics.

    Two differences from torch's: while a block is computed again for backward, statistics stay as they are, and a
    batch of one value per channel, which has no variance, is normalised by the running statistics.

    Args:
        channels: Number of channels.
        gain: First value of the weights; 0 lets a residual branch start as nothing.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, gain: float = 1.0) -> None:
        super().__init__(channels)
        self.recomputing = False
        nn.init.constant_(self.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b c ...) to the same shape."""
        mean, var = self.running_mean, self.running_var
        training = self.training and x.numel() > x.shape[1]
        if training and self.recomputing:
            # Copies take the update in their place; with none at all, other tensors would be saved for backward.
            mean, var = mean.clone(), var.clone()
        elif training:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        return functional.batch_norm(x, mean, var, self.weight, self.bias, training, momentum, self.eps)

    @torch.no_grad()
    def as_affine(self) -> tuple[Tensor, Tensor]:
        """Returns the factor and the shift of each channel that eval mode amounts to."""
        factor = self.weight * (self.running_var + self.eps).rsqrt()
        return factor, self.bias - self.running_mean * factor


class Fusable(nn.Module, ABC):
    """What can be replaced by something cheaper with the same output in eval mode."""

    @abstractmethod
    def fused(self) -> nn.Module:
        """Returns the replacement."""


def fuse(module: nn.Module) -> None:
    """Replaces every fusable part of a module, in place."""
    for name, part in module.named_children():
        if isinstance(part, Fusable):
            setattr(module, name, part.fused())
        else:
            fuse(part)


class ConvNorm(Fusable):
    """A padded convolution without bias, then BatchNorm: one convolution with bias, once fused.

    Args:
        channels: Channels in.
        out_channels: Channels out.
        stride: Stride of the 3x3 kernel.
        groups: Groups of channels that do not see each other.
    """

    def __init__(self, channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b c y x) to (b c y x)."""
        normed: Tensor = self.norm(self.conv(x))
        return normed

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """Returns one convolution."""
        factor, shift = self.norm.as_affine()
        conv = self.conv
        # `bias=True` draws from the generator, which fusing has no business to advance: skip the initialisation.
        one = nn.utils.skip_init(
            nn.Conv2d,
            conv.in_channels,
            conv.out_channels,
            3,
            conv.stride,
            padding=1,
            groups=conv.groups,
            device=factor.device,
            dtype=factor.dtype,
        )
        one.weight.copy_(conv.weight * factor[:, None, None, None])
        one.bias.copy_(shift)
        return one


class LinearNorm(Fusable):
    """A linear map without bias, then BatchNorm over all tokens: one linear map with bias, once fused.

    Args:
        dim: Width in.
        out_dim: Width out.
        gain: First value of the BatchNorm's weights.
    """

    def __init__(self, dim: int, out_dim: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_dim, bias=False)
        self.norm = BatchNorm(out_dim, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b n c) to (b n c)."""
        x = self.linear(x)
        return rearrange(self.norm(rearrange(x, "b n c -> (b n) c")), "(b n) c -> b n c", b=x.shape[0])

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """Returns one linear map."""
        factor, shift = self.norm.as_affine()
        return linear(self.linear.weight * factor[:, None], shift)


@torch.no_grad()
def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Makes a linear map of a given weight (out in) and bias (out)."""
    made = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    made.weight.copy_(weight)
    made.bias.copy_(bias)
    return made

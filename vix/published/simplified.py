"""The bodies that were published as CvN, CvP, LeViN and LeViP: plain attention on maps, made by convolutions.

They are what remained of CvT and LeViT, whose names they bear: no convolutional projections, no class token, no bias
on the logits, no shrinking, and in LeViN and LeViP no normalisation at all. For new work take `vix.CvN`, `vix.LeViN`
and so on, which are CvT and LeViT with another attention.

Source: Jeevan and Sethi, "Vision Xformers: Efficient Attention for Image Classification", 2021, arXiv:2107.02239.
Shapes: b batch, n tokens, c width, y x the map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vix.attention import AttentionFactory
from vix.backbones import Backbone
from vix.backbones.parts import to_tokens
from vix.checkpointing import checkpointed
from vix.layers import FeedForward, full_precision
from vix.mixers import SelfAttention
from vix.tokens import Tokens


class Standardise(torch.autograd.Function):
    """(x - mean) / (s + eps) * weight + bias over the last axis, with s the standard deviation; keeps its input alone.

    torch's layer_norm, whose eps is in the root, differs by the factor s / (s + eps) of a token. Its backward takes any
    scale for 1 / s: with the geometric mean of 1 / s and 1 / (s + eps), and the gradient scaled the other way, it is
    the gradient of this one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Maps (... c) to (... c)."""
        # The smallest number that keeps a constant token, whose deviation is zero, away from 0 / 0.
        tiny = torch.finfo(x.dtype).tiny
        out, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, tiny)
        ctx.save_for_backward(x, mean, inverse, weight)
        ctx.eps = eps
        return torch.addcmul(bias, out.div_(1 + eps * inverse), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (... c) of the output to those of the input, the weight and the bias."""
        x, mean, inverse, weight = ctx.saved_tensors
        shrink = (1 + ctx.eps * inverse).rsqrt()
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad * shrink,
            x,
            x.shape[-1:],
            mean,
            inverse * shrink,
            weight,
            torch.zeros_like(weight),
            (True, True, False),
        )
        return grad_x, grad_weight, grad.flatten(0, -2).sum(dim=0), None


@full_precision
def standardise(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Returns (x - mean) / (standard deviation + eps) * weight + bias over the last axis."""
    if not torch.compiler.is_compiling():
        return Standardise.apply(x, weight, bias, eps)
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + eps) * weight + bias


class StandardNorm(nn.Module):
    """LayerNorm, but with eps added to the standard deviation instead of the variance.

    Args:
        dim: Width of a token.
        eps: What is added.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (... c) to (... c)."""
        return standardise(x, self.weight, self.bias, eps=self.eps)


class SimplifiedBlock(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed-forward(norm(x)); the norms may be missing.

    Args:
        mixer: The attention.
        dim: Width of a token.
        mlp_dim: Hidden width of the feed-forward network.
        norms: Whether there are norms.
        dropout: Probability of dropping a value in the feed-forward network.
    """

    def __init__(self, mixer: SelfAttention, dim: int, mlp_dim: int, *, norms: bool, dropout: float) -> None:
        super().__init__()
        self.mixer_norm = StandardNorm(dim) if norms else nn.Identity()
        self.mixer = mixer
        self.mlp_norm = StandardNorm(dim) if norms else nn.Identity()
        self.mlp = FeedForward(dim, mlp_dim, dropout=dropout, last=True)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        x = x + self.mixer(self.mixer_norm(x), tokens)
        return x + self.mlp(self.mlp_norm(x))


class SimplifiedStage(nn.Module):
    """Convolutions with nothing between them, an optional norm, and blocks.

    Args:
        convolutions: They make the tokens.
        norm: Normalises these.
        blocks: The layers.
    """

    def __init__(self, convolutions: Sequence[nn.Module], norm: nn.Module, blocks: Sequence[SimplifiedBlock]) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*convolutions)
        self.norm = norm
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """Maps (b c y x) to (b c y x); `checkpointing` computes blocks again in backward."""
        x = self.convolutions(x.contiguous(memory_format=torch.channels_last))
        tokens = Tokens((x.shape[-2], x.shape[-1]))
        x = self.norm(to_tokens(x))
        for block in self.blocks:
            x = checkpointed(block, block, x, tokens) if checkpointing else block(x, tokens)
        return rearrange(x, "b (y x) c -> b c y x", y=tokens.grid[0])


class Simplified(Backbone):
    """Stages of convolutions and blocks, the mean over the map, and a linear classifier.

    Args:
        attention: Makes the kernel.
        convolutions: For each stage its convolutions, each by (width, kernel, stride).
        depth: Number of blocks in each stage.
        heads: Number of heads in each stage.
        mlp_ratio: Hidden over outer width of the feed-forward networks in each stage.
        norms: Whether tokens are normalised, behind the convolutions and in the blocks.
        dim_head: Width of a head.
        qkv_bias: Whether the projections of queries, keys and values have a bias.
        image_size: Side of the images in pixels, or (height, width).
        num_classes: Number of classes.
        channels: Channels of the images.
        dropout: Probability of dropping a value in the feed-forward networks.
    """

    def __init__(
        self,
        *,
        attention: AttentionFactory,
        convolutions: Sequence[Sequence[Sequence[int]]],
        depth: Sequence[int],
        heads: Sequence[int],
        mlp_ratio: Sequence[int],
        norms: bool,
        dim_head: int = 32,
        qkv_bias: bool = False,
        image_size: int | tuple[int, int] = 64,
        num_classes: int = 200,
        channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(image_size=image_size, num_classes=num_classes, channels=channels)
        self.stages = nn.ModuleList()
        width, grid = channels, self.image_size
        for convs, blocks, count, ratio in zip(convolutions, depth, heads, mlp_ratio, strict=True):
            layers = []
            for out, kernel, stride in convs:
                layers.append(nn.Conv2d(width, out, kernel, stride, padding=kernel // 2))
                rows, columns = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in grid)
                width, grid = out, (rows, columns)
            tokens = Tokens(grid)
            if not self.stages:
                self.tokens = tokens
            mixers = [
                SelfAttention(width, tokens, heads=count, dim_head=dim_head, attention=attention, qkv_bias=qkv_bias)
                for _ in range(blocks)
            ]
            parts = [SimplifiedBlock(mixer, width, ratio * width, norms=norms, dropout=dropout) for mixer in mixers]
            self.stages.append(SimplifiedStage(layers, StandardNorm(width) if norms else nn.Identity(), parts))
        self.num_features = width
        self.head = nn.Linear(width, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to the map (b c y x) after the last block."""
        x = images
        for stage in self.stages:
            x = stage(x, self.grad_checkpointing and torch.is_grad_enabled())
        return x

    def pooled(self, features: Tensor) -> Tensor:
        """Maps the map (b c y x) after the last block to the vector (b c) that the classifier sees."""
        return reduce(features, "b c y x -> b c", "mean")

"""The LeViT body: a convolutional stem, then stages of attention between which attention itself shrinks the grid.

Source: Graham et al., "LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference", ICCV 2021,
arXiv:2104.01136, section 4; sizes from its table 1 and code (github.com/facebookresearch/LeViT).
Differences: no second head for distillation; stochastic depth grows from block to block.
Shapes: b batch, h heads, n query tokens, m key tokens, d key width per head, e value width per head, c width, y x map.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from vix.attention import AttentionFactory, AttentionSpec, SoftmaxAttention
from vix.backbones.base import Backbone, classifier
from vix.backbones.parts import (
    BatchNorm,
    ConvNorm,
    Fusable,
    LinearNorm,
    PerStage,
    check_sides,
    default_stride,
    fuse,
    growing,
    linear,
    per_stage,
    strided,
    to_map,
    to_tokens,
)
from vix.checkpointing import checkpointed, worth_recomputing
from vix.layers import DropPath, check_counts, check_rates
from vix.resample import resample_distances
from vix.tokens import Tokens

AttentionPosition = Literal["bias", "values", "none"]
"""How attention knows where tokens stand: a bias on its logits, a convolution of its values, or not at all."""


class OffsetBias(Fusable):
    """A learned number for each head and each distance (|dy|, |dx|) of a key from a query, to be added to the logits.

    Args:
        heads: Number of heads.
        tokens: The keys.
        stride: Every how many keys along each axis there is a query.
    """

    undecayed = ("table",)

    def __init__(self, heads: int, tokens: Tokens, stride: int) -> None:
        super().__init__()
        self.tokens, self.stride = tokens, stride
        self.table = nn.Parameter(torch.zeros(heads, tokens.count))

    def forward(self, tokens: Tokens) -> Tensor:
        """Returns the bias (h n m) among these keys and their queries.

        Raises:
            ValueError: If the tokens are not those of the table.
        """
        if tokens.differs(self.tokens):
            raise ValueError(
                f"the attention bias was built for {self.tokens}, got {tokens}: "
                "build the net for this size, or use position='values'"
            )
        rows, columns = tokens.grid
        near = rearrange(self.table, "h (y x) -> h y x", y=rows)
        # A window of the mirrored table is the bias of one query. Unlike an index, windows cost no n x m integers, and
        # their backward adds up in a fixed order.
        mirrored = torch.cat([near[:, 1:].flip(1), near], dim=1)
        mirrored = torch.cat([mirrored[:, :, 1:].flip(2), mirrored], dim=2)
        windows = mirrored.unfold(1, rows, 1).unfold(2, columns, 1)
        every = self.stride
        windows = windows[:, (rows - 1) % every :: every, (columns - 1) % every :: every].flip(1, 2)
        return rearrange(windows, "h y x i j -> h (y x) (i j)")

    def take_from(self, other: "OffsetBias") -> None:
        """Takes the table of one that was built for other keys, interpolated."""
        self.table.copy_(resample_distances(other.table, other.tokens, self.tokens))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """Returns the bias written out."""
        return FixedBias(self(self.tokens), self.tokens)


class FixedBias(nn.Module):
    """A bias that is not learned any more, written out.

    Args:
        matrix: The bias (h n m).
        tokens: The keys that it belongs to.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, tokens: Tokens) -> None:
        super().__init__()
        self.tokens = tokens
        self.register_buffer("matrix", matrix)

    def forward(self, tokens: Tokens) -> Tensor:
        """Returns the bias (h n m).

        Raises:
            ValueError: If the tokens are not those of the matrix.
        """
        if tokens.differs(self.tokens):
            raise ValueError(f"the attention bias was built for {self.tokens}, got {tokens}")
        return self.matrix


class LeViTAttention(nn.Module):
    """Attention whose values are wider than its keys and whose queries may stand on every second token only.

    Args:
        dim: Width of a token.
        out_dim: Width of a token that comes out.
        tokens: The tokens that it is built for.
        heads: Number of heads.
        dim_head: Width of a query and of a key, per head.
        value_ratio: Width of a value over that of a key.
        stride: Every how many tokens along each axis there is a query.
        attention: Makes the kernel.
        position: `bias` adds an `OffsetBias` to the logits; `values` adds a 3x3 depth-wise convolution of the values to
            the output, at the places of the queries; `none` tells nothing.
        gain: First value of the weights of the last BatchNorm.

    Raises:
        ValueError: If the kernel takes no bias and `position` is `bias`.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        tokens: Tokens,
        *,
        heads: int,
        dim_head: int,
        value_ratio: int,
        stride: int,
        attention: AttentionFactory,
        position: AttentionPosition,
        gain: float,
    ) -> None:
        super().__init__()
        self.heads, self.stride, self.widths = heads, stride, [dim_head, value_ratio * dim_head]
        values = heads * value_ratio * dim_head
        self.queries = LinearNorm(dim, heads * dim_head)
        self.keys_values = LinearNorm(dim, heads * dim_head + values)
        self.attention = attention(AttentionSpec(heads, dim_head, strided(tokens, stride), tokens))
        if position == "bias" and not self.attention.accepts_bias:
            raise ValueError(
                f"{type(self.attention).__name__} takes no bias on its logits: give position='values' (a depth-wise "
                "convolution of the values) or position='none'"
            )
        self.bias = OffsetBias(heads, tokens, stride) if position == "bias" else None
        self.value_position = (
            nn.Conv2d(values, values, 3, stride, padding=1, groups=values) if position == "values" else None
        )
        self.activation = nn.Hardswish()
        self.output = LinearNorm(values, out_dim, gain=gain)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b m c) to (b n c): n is m without a stride."""
        k, v = rearrange(self.keys_values(x), "b m (h c) -> b h m c", h=self.heads).split(self.widths, dim=-1)
        if self.stride > 1:
            x = to_tokens(to_map(x, tokens)[:, :, :: self.stride, :: self.stride])
        q = rearrange(self.queries(x), "b n (h d) -> b h n d", h=self.heads)
        bias = () if self.bias is None else (self.bias(tokens),)
        out = rearrange(self.attention(q, k, v, *bias), "b h n e -> b n (h e)")
        if self.value_position is not None:
            out = out + to_tokens(self.value_position(to_map(rearrange(v, "b h m e -> b m (h e)"), tokens)))
        mixed: Tensor = self.output(self.activation(out))
        return mixed


class LeViTBlock(nn.Module):
    """One layer: x + attention(x), or attention(x) alone where it shrinks the grid, then x + feed-forward(x).

    Every linear map has a BatchNorm behind it, and none before: a fused net normalises nothing.

    Args:
        attention: Lets the tokens see each other.
        dim: Width of a token that comes out.
        hidden: Hidden width of the feed-forward network.
        dropout: Probability of dropping a hidden value of it.
        drop_path: Probability that an image skips a branch.
    """

    def __init__(self, attention: LeViTAttention, dim: int, hidden: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.attention = attention
        self.expand = LinearNorm(dim, hidden)
        self.activation = nn.Hardswish()
        self.dropout = nn.Dropout(dropout)
        self.contract = LinearNorm(hidden, dim, gain=0.0)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b m c) to (b n c)."""
        mixed = self.attention(x, tokens)
        x = mixed if self.attention.stride > 1 else x + self.drop_path(mixed)
        return x + self.drop_path(self.contract(self.dropout(self.activation(self.expand(x)))))


def _stem(channels: int, dim: int, stride: int) -> nn.Sequential:
    doublings = stride.bit_length() - 1
    convolutions = max(3, doublings)
    widths = [channels, *(dim >> left for left in reversed(range(convolutions)))]
    stem = nn.Sequential()
    for index, (before, after) in enumerate(pairwise(widths)):
        stem.append(ConvNorm(before, after, stride=2 if index < doublings else 1))
        if index + 1 < convolutions:
            stem.append(nn.Hardswish())
    return stem


def _size(dim: tuple[int, ...], depth: tuple[int, ...], heads: tuple[int, ...], dim_head: int) -> dict[str, Any]:
    sizes = {"dim": dim, "depth": depth, "heads": heads, "dim_head": dim_head}
    return {"image_size": 224, "num_classes": 1000, "stem_stride": 16, **sizes}


class LeViT(Backbone):
    """The LeViT body around any kernel; with softmax attention it is LeViT.

    The defaults are for images of 32 to 64 pixels: the paper's three stages, narrower, behind a stem that leaves the
    first of them 1,024 tokens. The paper's own sizes are presets: `LeViT.preset("128S")`.

    Args:
        attention: Makes the kernel of a block: a class of `vix.attention`, a partial of one, or your own.
        shrinking_attention: Makes the kernel that leads from one stage to the next, which has four keys for each query;
            left out, `attention` does.
        image_size: Side of the images in pixels, or (height, width); at least 8.
        num_classes: Number of classes.
        dim: Width of a token in each stage; there are as many stages.
        depth: Number of blocks in each stage.
        heads: Number of heads in each stage; between stages there are as many as fit into a token, `dim // dim_head`.
        dim_head: Width of a query and of a key, per head.
        value_ratio: Width of a value over that of a key; between stages it is 4.
        mlp_ratio: Hidden over outer width of the feed-forward networks; between stages it is 2.
        stem_stride: Side of a first token in pixels, a power of two; left out, the smallest that leaves at most 1,024
            tokens. Three convolutions of 3x3 make it, or as many as it has factors of two.
        position: How attention knows where tokens stand: by a `bias` for each distance on its logits, as published; by
            a 3x3 depth-wise convolution of its `values`, for kernels that have no logits; `none` for not at all.
        channels: Channels of the images.
        dropout: Probability of dropping a hidden value of the feed-forward networks.
        drop_path: Probability that an image skips a branch of the last block; it grows from 0 at the first.

    Raises:
        ValueError: If an argument is out of range, or the kernel cannot do what is asked of it.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "128S": _size((128, 256, 384), (2, 3, 4), (4, 6, 8), 16),
        "128": _size((128, 256, 384), (4, 4, 4), (4, 8, 12), 16),
        "192": _size((192, 288, 384), (4, 4, 4), (3, 5, 6), 32),
        "256": _size((256, 384, 512), (4, 4, 4), (4, 6, 8), 32),
        "384": _size((384, 512, 768), (4, 4, 4), (6, 9, 12), 32),
    }

    def __init__(
        self,
        *,
        attention: AttentionFactory = SoftmaxAttention,
        shrinking_attention: AttentionFactory | None = None,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        dim: PerStage = (64, 96, 128),
        depth: PerStage = (2, 2, 2),
        heads: PerStage = (2, 3, 4),
        dim_head: int = 16,
        value_ratio: int = 2,
        mlp_ratio: int = 2,
        stem_stride: int | None = None,
        position: AttentionPosition = "bias",
        channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(image_size=image_size, num_classes=num_classes, channels=channels)
        check_sides(*self.image_size)
        check_counts(dim_head=dim_head, value_ratio=value_ratio, mlp_ratio=mlp_ratio)
        check_rates(dropout=dropout, drop_path=drop_path)
        if position not in get_args(AttentionPosition):
            raise ValueError(f"position must be one of {', '.join(get_args(AttentionPosition))}, got {position!r}")
        dims = per_stage(dim, len(dim) if isinstance(dim, list | tuple) else 1, "dim")
        depths, all_heads = per_stage(depth, len(dims), "depth"), per_stage(heads, len(dims), "heads")
        stride = default_stride(self.image_size) if stem_stride is None else stem_stride
        check_counts(stem_stride=stride)
        if stride & (stride - 1):
            raise ValueError(f"stem_stride must be a power of two, got {stem_stride}")
        multiple = max(4, stride // 2)
        if dims[0] % multiple:
            raise ValueError(f"the first dim must be a multiple of {multiple} (the stem halves it), got {dims[0]}")
        if min(dims) < dim_head:
            raise ValueError(f"dim_head must be at most the smallest dim, {min(dims)}, got {dim_head}")
        self.pinned = {"stem_stride": stride}
        self.stem, self.num_features = _stem(channels, dims[0], stride), dims[-1]
        self.tokens = tokens = strided(Tokens(self.image_size), stride)
        rates = iter(growing(drop_path, sum(depths) + len(dims) - 1))
        self.blocks = nn.ModuleList()
        self.strides: list[int] = []
        sizes: list[int] = []
        width = dims[0]
        for stage, (out, blocks, count) in enumerate(zip(dims, depths, all_heads, strict=True)):
            for block in range(-1 if stage else 0, blocks):
                shrinks = block < 0
                mixer = LeViTAttention(
                    width,
                    out,
                    tokens,
                    heads=width // dim_head if shrinks else count,
                    dim_head=dim_head,
                    value_ratio=4 if shrinks else value_ratio,
                    stride=2 if shrinks else 1,
                    attention=shrinking_attention if shrinks and shrinking_attention else attention,
                    position=position,
                    gain=1.0 if shrinks else 0.0,
                )
                hidden = out * (2 if shrinks else mlp_ratio)
                self.blocks.append(LeViTBlock(mixer, out, hidden, dropout=dropout, drop_path=next(rates)))
                self.strides.append(mixer.stride)
                sizes.append(tokens.count * width)
                width, tokens = out, strided(tokens, mixer.stride)
        self.recomputed = worth_recomputing(sizes)
        self.norm: nn.Module = BatchNorm(self.num_features)
        self.head = classifier(self.num_features, num_classes)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to the tokens (b n c) after the last block."""
        check_sides(images.shape[-2], images.shape[-1])
        x = self.stem(images)
        tokens = Tokens((x.shape[-2], x.shape[-1]))
        x = to_tokens(x)
        checkpointing = self.grad_checkpointing and torch.is_grad_enabled()
        for index, (block, stride) in enumerate(zip(self.blocks, self.strides, strict=True)):
            again = checkpointing and index < self.recomputed
            x = checkpointed(block, block, x, tokens) if again else block(x, tokens)
            tokens = strided(tokens, stride)
        return x

    def pooled(self, features: Tensor) -> Tensor:
        """Maps the tokens (b n c) after the last block to the vector (b c) that the classifier sees."""
        vector: Tensor = self.norm(features.mean(dim=1))
        return vector

    @torch.no_grad()
    def fuse(self) -> "LeViT":
        """Folds every BatchNorm into the linear map or convolution beside it and writes out the biases, in place.

        For inference only: logits stay the same, and weights saved afterwards fit no unfused net.

        Returns:
            The net itself, in eval mode.
        """
        fuse(self)
        if isinstance(self.norm, BatchNorm) and isinstance(self.head, nn.Linear):
            factor, shift = self.norm.as_affine()
            self.head = linear(self.head.weight * factor, self.head.bias + self.head.weight @ shift)
            self.norm = nn.Identity()
        return self.eval()

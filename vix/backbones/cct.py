"""The CCT body: a convolutional tokenizer, blocks that go on from the normed value, and pooling over the sequence.

Source: Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers", 2021, arXiv:2104.05704, sections 3.2
to 3.4; sizes from its table 1 and code (github.com/SHI-Labs/Compact-Transformers).
Shapes: b batch, n tokens, c width, y x the map.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vix.attention import AttentionFactory, SoftmaxAttention
from vix.backbones.base import Backbone, classifier
from vix.backbones.parts import PerStage, check_sides, default_stride, growing, per_stage, to_tokens
from vix.checkpointing import checkpointed
from vix.layers import DropPath, FeedForward, check_counts, check_rates, recompute
from vix.mixers import Mixer, SelfAttention
from vix.positions import LearnedPosition
from vix.resample import places_in_sequence
from vix.tokens import Tokens, pair

CCTPosition = Literal["learned", "sine", "rope", "rope_axial", "none"]
"""How the net knows where its tokens stand."""


class Tokenizer(nn.Module):
    """Makes tokens of an image by rounds of convolution, ReLU and 3x3 max-pooling, all padded.

    ReLU comes after the pooling, which gives the same values and gradients and costs less memory traffic.

    Args:
        channels: Channels of the image.
        dim: Width of a token; the rounds before the last are 64 wide.
        kernel: Side of the convolutions' kernel; odd.
        strides: Stride of each convolution; there are as many rounds.
        pool_stride: Stride of the pooling.
    """

    def __init__(self, channels: int, dim: int, *, kernel: int, strides: tuple[int, ...], pool_stride: int) -> None:
        super().__init__()
        self.strides, self.pool_stride = strides, pool_stride
        widths = [channels, *[64] * (len(strides) - 1), dim]
        self.convolutions = nn.ModuleList()
        for (before, after), stride in zip(pairwise(widths), strides, strict=True):
            convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            self.convolutions.append(convolution)
        self.pool = nn.MaxPool2d(3, pool_stride, padding=1)

    def grid(self, side: int) -> int:
        """Returns how many tokens there are along a side."""
        for stride in self.strides:
            side = -(-side // stride)
            side = -(-side // self.pool_stride)
        return side

    def forward(self, images: Tensor) -> Tensor:
        """Maps (b c y x) in pixels to (b c y x) in tokens."""
        # Pooling is several times faster where a pixel's channels lie together, and tokens lie so anyway.
        x = images.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            # The places of the maxima would be eight bytes a value; finding them again costs little.
            x = recompute(self.pooled, convolution(x))
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """The largest of each 3x3 values, and zero where all are negative."""
        # Hooks of the pooling, such as torch's counter of operations sets, cannot run in a backward pass.
        return functional.relu_(self.pool.forward(x))


def spread(stride: int, rounds: int) -> tuple[int, ...]:
    """Spreads a power of two over rounds, the first ones first: 2 is 2, 1, 1."""
    strides, turn = [1] * rounds, 0
    while stride > 1:
        strides[turn % rounds] *= 2
        stride //= 2
        turn += 1
    return tuple(strides)


class SinePosition(nn.Module):
    """Adds sines and cosines of the index in the sequence, of wavelengths from 2 pi to 20,000 pi tokens.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, section 3.5.

    Args:
        tokens: The tokens that it is prepared for; others are served too.
        dim: Width of a token.
        grid: Rows and columns of the tokens that the net was trained with; left out, those of each image.
    """

    table: Tensor

    def __init__(self, tokens: Tokens, dim: int, *, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.tokens, self.dim, self.grid = tokens, dim, grid
        self.register_buffer("table", self.waves(tokens), persistent=False)

    def waves(self, tokens: Tokens) -> Tensor:
        """Returns the table (n c)."""
        channel = torch.arange(self.dim, dtype=torch.float64)
        frequencies = 10000 ** (-2 * (channel // 2) / self.dim)
        angles = places_in_sequence(tokens, self.grid).outer(frequencies)
        return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        return x + (self.waves(tokens).to(self.table) if tokens.differs(self.tokens) else self.table)


class CCTBlock(nn.Module):
    """One layer: s = norm(x + attention(norm(x))), then s + feed-forward(s).

    Unlike in ViT the second residual starts from the normed value.

    Args:
        dim: Width of a token.
        mixer: Lets the tokens see each other.
        hidden: Hidden width of the feed-forward network.
        dropout: Probability of dropping a value in the feed-forward network.
        drop_path: Probability that an image skips a branch.
    """

    def __init__(self, dim: int, mixer: Mixer, hidden: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden, dropout=dropout, last=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        x = self.mlp_norm(x + self.drop_path(self.mixer(self.mixer_norm(x), tokens)))
        return x + self.drop_path(self.mlp(x))


class SequencePooling(nn.Module):
    """Weighs the tokens of each image by a softmax of one learned direction, and sums them (section 3.3 of the paper).

    Args:
        dim: Width of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b n c) to (b c)."""
        weights = self.weigh(x).softmax(dim=1).to(x.dtype)
        return (weights.mT @ x).squeeze(1)


def _size(name: str) -> dict[str, Any]:
    """Reads a name as the paper has them: layers / kernel x convolutions."""
    layers, _, tokenizer = name.partition("/")
    kernel, rounds = (int(number) for number in tokenizer.split("x"))
    dim, heads, mlp_ratio = {"2": (128, 2, 1), "4": (128, 2, 1), "14": (384, 6, 3)}.get(layers, (256, 4, 2))
    widths = {"dim": dim, "depth": int(layers), "heads": heads, "dim_head": dim // heads, "mlp_ratio": mlp_ratio}
    images = {"image_size": 32, "num_classes": 10} if kernel == 3 else {"image_size": 224, "num_classes": 1000}
    return {**images, **widths, "kernel": kernel, "stride": (max(1, kernel // 2 - 1),) * rounds, "pool_stride": 2}


class CCT(Backbone):
    """The CCT body around any kernel; with softmax attention it is CCT.

    The defaults are the published sizes for small images, of 1,024 tokens for 32x32 and 64x64. The paper's own sizes
    are presets, named as there by layers, kernel and convolutions: `CCT.preset("7/3x1")`.

    Args:
        attention: Makes the kernel: a class of `vix.attention`, a partial of one, or your own.
        image_size: Side of the images in pixels, or (height, width); at least 8.
        num_classes: Number of classes.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Number of heads.
        dim_head: Width of a head; `heads * dim_head` need not be `dim`.
        mlp_ratio: Hidden over outer width of the feed-forward networks; 1 as intended, where a misspelt argument made
            the published code take 4.
        kernel: Side of the tokenizer's convolutions; odd.
        stride: Stride of each convolution, of which there are as many, three if it is one number; left out, three
            powers of two that leave at most 1,024 tokens.
        pool_stride: Stride of the pooling after each convolution; 1 as published, 2 in the paper.
        position: `learned` or `sine` adds a table to the tokens; `rope` turns queries and keys along the sequence and
            `rope_axial` along both axes; `none` tells nothing.
        position_grid: Rows and columns of the tokens that `sine` and rotations were trained with; left out, those of
            each image.
        qkv_bias: Whether the projections of queries, keys and values have a bias.
        channels: Channels of the images.
        dropout: Probability of dropping a value of the attention's output and in the feed-forward networks.
        emb_dropout: Probability of dropping a value of the embedded tokens.
        drop_path: Probability that an image skips a branch of the last block; it grows from 0 at the first.

    Raises:
        ValueError: If an argument is out of range.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: _size(name) for name in ("2/3x2", "4/3x2", "6/3x1", "6/3x2", "7/3x1", "7/3x2", "7/7x2", "14/7x2")
    }

    def __init__(
        self,
        *,
        attention: AttentionFactory = SoftmaxAttention,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        dim_head: int = 32,
        mlp_ratio: int = 1,
        kernel: int = 3,
        stride: PerStage | None = None,
        pool_stride: int = 1,
        position: CCTPosition = "learned",
        position_grid: tuple[int, int] | None = None,
        qkv_bias: bool = False,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(image_size=image_size, num_classes=num_classes, channels=channels)
        check_sides(*self.image_size)
        check_counts(dim=dim, depth=depth, mlp_ratio=mlp_ratio, kernel=kernel, pool_stride=pool_stride)
        check_rates(dropout=dropout, emb_dropout=emb_dropout, drop_path=drop_path)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        if position not in get_args(CCTPosition):
            raise ValueError(f"position must be one of {', '.join(get_args(CCTPosition))}, got {position!r}")
        grid = None if position_grid is None else pair(position_grid, "position_grid")
        if stride is None:
            stride = spread(max(1, default_stride(self.image_size) // pool_stride**3), 3)
        strides = per_stage(stride, 3 if isinstance(stride, int) else len(stride), "stride")
        if max(strides) > kernel:
            raise ValueError(f"stride {max(strides)} skips pixels of a {kernel}x{kernel} kernel: give a larger kernel")
        self.tokenizer = Tokenizer(channels, dim, kernel=kernel, strides=strides, pool_stride=pool_stride)
        self.tokens = Tokens((self.tokenizer.grid(self.image_size[0]), self.tokenizer.grid(self.image_size[1])))
        self.num_features, self.pinned = dim, {"stride": strides}
        if position in ("sine", "rope", "rope_axial"):
            self.pinned["position_grid"] = grid or self.tokens.grid
        self.position: LearnedPosition | SinePosition | None = None
        if position == "learned":
            self.position = LearnedPosition(self.tokens, dim)
            nn.init.trunc_normal_(self.position.table, std=0.2)
        elif position == "sine":
            self.position = SinePosition(self.tokens, dim, grid=grid)
        self.dropout = nn.Dropout(emb_dropout)
        mixer = partial(
            SelfAttention,
            heads=heads,
            dim_head=dim_head,
            attention=attention,
            rotary=position if position == "rope" or position == "rope_axial" else None,
            position_grid=grid,
            qkv_bias=qkv_bias,
            dropout=dropout,
        )
        self.blocks = nn.ModuleList(
            CCTBlock(dim, mixer(dim, self.tokens), mlp_ratio * dim, dropout=dropout, drop_path=rate)
            for rate in growing(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pool = SequencePooling(dim)
        self.head = classifier(dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to the tokens (b n c) after the last block."""
        check_sides(images.shape[-2], images.shape[-1])
        x = self.tokenizer(images)
        tokens = Tokens((x.shape[-2], x.shape[-1]))
        x = to_tokens(x)
        if self.position is not None:
            x = self.position(x, tokens)
        x = self.dropout(x)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpointed(block, block, x, tokens)
            else:
                x = block(x, tokens)
        return x

    def pooled(self, features: Tensor) -> Tensor:
        """Maps the tokens (b n c) after the last block to the vector (b c) that the classifier sees."""
        vector: Tensor = self.pool(self.norm(features))
        return vector

"""The CvT body: stages of convolutional token embedding, and attention whose q, k, v come from convolutions.

Source: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021, arXiv:2103.15808, sections 3.1 and
3.2; sizes from its table 2 and code (github.com/microsoft/CvT).
Differences: the code divides logits by the square root of the width of all heads, where the kernels of `vix.attention`
take that of one head as the paper's equation has it; stochastic depth grows over all stages, not the last one alone.
Shapes: b batch, h heads, n query tokens, m key tokens, d width of a head, c width, y x the map.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from vix.attention import AttentionFactory, AttentionSpec, SoftmaxAttention
from vix.backbones.base import Backbone, classifier
from vix.backbones.parts import (
    ConvNorm,
    PerStage,
    check_sides,
    default_stride,
    fuse,
    growing,
    per_stage,
    strided,
    to_map,
    to_tokens,
)
from vix.checkpointing import checkpointed, worth_recomputing
from vix.layers import DropPath, FeedForward, Linear, check_counts, check_rates
from vix.tokens import Tokens

Pool = Literal["cls", "mean"]


class ConvolutionalProjection(nn.Module):
    """Makes queries, keys or values: a 3x3 depth-wise convolution and BatchNorm on the map, then a linear map.

    Class tokens stand on no map and go to the linear map at once.

    Args:
        dim: Width of a token.
        inner: Width of all heads.
        stride: Every how many tokens along each axis there is one of the output.
        bias: Whether the linear map has a bias.
    """

    def __init__(self, dim: int, inner: int, *, stride: int, bias: bool) -> None:
        super().__init__()
        self.convolution = ConvNorm(dim, dim, stride=stride, groups=dim)
        self.project = Linear(dim, inner, bias=bias)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b m c)."""
        prefix, grid = x.split([tokens.prefix, x.shape[1] - tokens.prefix], dim=1)
        grid = to_tokens(self.convolution(to_map(grid, tokens)))
        projected: Tensor = self.project(torch.cat([prefix, grid], dim=1) if tokens.prefix else grid)
        return projected


class CvTAttention(nn.Module):
    """Self-attention with convolutional projections, and fewer keys than queries.

    Args:
        dim: Width of a token.
        tokens: The tokens that it is built for.
        heads: Number of heads.
        dim_head: Width of a head.
        kv_stride: Every how many tokens along each axis there is a key.
        qkv_bias: Whether the projections of queries, keys and values have a bias.
        attention: Makes the kernel.
        dropout: Probability of dropping a value of the output.
    """

    def __init__(
        self,
        dim: int,
        tokens: Tokens,
        *,
        heads: int,
        dim_head: int,
        kv_stride: int,
        qkv_bias: bool,
        attention: AttentionFactory,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads, inner = heads, heads * dim_head
        self.queries = ConvolutionalProjection(dim, inner, stride=1, bias=qkv_bias)
        self.keys = ConvolutionalProjection(dim, inner, stride=kv_stride, bias=qkv_bias)
        self.values = ConvolutionalProjection(dim, inner, stride=kv_stride, bias=qkv_bias)
        self.attention = attention(AttentionSpec(heads, dim_head, tokens, strided(tokens, kv_stride)))
        self.output = Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        q, k, v = (
            rearrange(project(x, tokens), "b n (h d) -> b h n d", h=self.heads)
            for project in (self.queries, self.keys, self.values)
        )
        out = self.attention(q, k, v)
        return self.dropout(self.output(rearrange(out, "b h n d -> b n (h d)")))


class CvTBlock(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed-forward(norm(x)).

    Args:
        dim: Width of a token.
        attention: Lets the tokens see each other.
        hidden: Hidden width of the feed-forward network.
        dropout: Probability of dropping a value in the feed-forward network.
        drop_path: Probability that an image skips a branch.
    """

    def __init__(self, dim: int, attention: CvTAttention, hidden: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden, dropout=dropout, last=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        x = x + self.drop_path(self.attention(self.attention_norm(x), tokens))
        return x + self.drop_path(self.mlp(x, self.mlp_norm))


class TokenEmbedding(nn.Module):
    """Makes tokens of a map by one convolution whose windows overlap, then LayerNorm.

    The kernel is 2 * stride - 1 wide, and at least 3: the paper's 7 and 3 for its strides of 4 and 2. Its padding gives
    t tokens for t * stride pixels.

    Args:
        channels: Channels of the map.
        dim: Width of a token.
        stride: Side of a token.
    """

    def __init__(self, channels: int, dim: int, stride: int) -> None:
        super().__init__()
        kernel = max(3, 2 * stride - 1)
        self.project = nn.Conv2d(channels, dim, kernel, stride, padding=(kernel - stride + 1) // 2)
        self.norm = nn.LayerNorm(dim)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns how many tokens a map of this size has along each side.

        Raises:
            ValueError: If there are none.
        """
        kernel, padding, stride = self.project.kernel_size[0], int(self.project.padding[0]), self.project.stride[0]
        rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        if min(rows, columns) < 1:
            raise ValueError(f"a stride of {stride} leaves no token of a map of {height}x{width}: give a smaller one")
        return rows, columns

    def forward(self, x: Tensor) -> tuple[Tensor, Tokens]:
        """Maps (b c y x) to tokens (b n c) and where they sit."""
        self.grid(x.shape[-2], x.shape[-1])
        x = self.project(x)
        return self.norm(to_tokens(x)), Tokens((x.shape[-2], x.shape[-1]))


class CvTStage(nn.Module):
    """An embedding, an optional class token, and blocks.

    Args:
        embedding: Makes the tokens.
        dim: Width of a token.
        class_token: Whether there is one.
        blocks: The layers.
    """

    undecayed = ("class_token",)

    def __init__(self, embedding: TokenEmbedding, dim: int, class_token: bool, blocks: list[CvTBlock]) -> None:
        super().__init__()
        self.embedding = embedding
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, recomputed: int) -> tuple[Tensor, Tokens]:
        """Maps (b c y x) to tokens (b n c) and where they sit; the first blocks are `recomputed` in backward."""
        x, tokens = self.embedding(x)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
            tokens = Tokens(tokens.grid, prefix=1)
        for index, block in enumerate(self.blocks):
            x = checkpointed(block, block, x, tokens) if index < recomputed else block(x, tokens)
        return x, tokens


def _size(depth: tuple[int, ...]) -> dict[str, Any]:
    dims = {"dim": (64, 192, 384), "heads": (1, 3, 6), "dim_head": 64, "mlp_ratio": 4, "stride": (4, 2, 2)}
    return {"image_size": 224, "num_classes": 1000, "depth": depth, **dims}


class CvT(Backbone):
    """The CvT body around any kernel; with softmax attention it is CvT.

    The defaults are for images of 32 to 64 pixels: the paper's three stages, narrower, the first of which has 1,024
    tokens. The paper's own sizes are presets: `CvT.preset("13")`.

    Args:
        attention: Makes the kernel: a class of `vix.attention`, a partial of one, or your own. It gets a quarter as
            many keys as queries; Nyström attention needs `residual_kernel=None` for that, as CvN has it.
        image_size: Side of the images in pixels, or (height, width); at least 8.
        num_classes: Number of classes.
        dim: Width of a token in each stage; there are as many stages.
        depth: Number of blocks in each stage.
        heads: Number of heads in each stage.
        dim_head: Width of a head; `heads * dim_head` need not be `dim`.
        mlp_ratio: Hidden over outer width of the feed-forward networks.
        stride: Side of a token, in tokens of the stage before (in pixels for the first); left out, 2, and for the first
            stage the smallest power of two that leaves at most 1,024 tokens.
        kv_stride: Every how many tokens along each axis there is a key.
        qkv_bias: Whether the projections of queries, keys and values have a bias.
        pool: What the classifier sees: the class token, which joins in the last stage, or the mean of all tokens, and
            then there is no class token.
        channels: Channels of the images.
        dropout: Probability of dropping a value of the attention's output and in the feed-forward networks.
        drop_path: Probability that an image skips a branch of the last block; it grows from 0 at the first.

    Raises:
        ValueError: If an argument is out of range, or the kernel cannot do what is asked of it.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"13": _size((1, 2, 10)), "21": _size((1, 4, 16))}

    def __init__(
        self,
        *,
        attention: AttentionFactory = SoftmaxAttention,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        dim: PerStage = (32, 64, 128),
        depth: PerStage = (1, 2, 3),
        heads: PerStage = (1, 2, 4),
        dim_head: int = 32,
        mlp_ratio: int = 4,
        stride: PerStage | None = None,
        kv_stride: int = 2,
        qkv_bias: bool = True,
        pool: Pool = "cls",
        channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(image_size=image_size, num_classes=num_classes, channels=channels)
        check_sides(*self.image_size)
        check_counts(dim_head=dim_head, mlp_ratio=mlp_ratio, kv_stride=kv_stride)
        check_rates(dropout=dropout, drop_path=drop_path)
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
        dims = per_stage(dim, len(dim) if isinstance(dim, list | tuple) else 1, "dim")
        depths, all_heads = per_stage(depth, len(dims), "depth"), per_stage(heads, len(dims), "heads")
        if stride is None:
            stride = (default_stride(self.image_size), *[2] * (len(dims) - 1))
        strides = per_stage(stride, len(dims), "stride")
        self.num_features, self.pool, self.pinned = dims[-1], pool, {"stride": strides}
        rates = iter(growing(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        sizes: list[int] = []
        width, grid = channels, self.image_size
        for index, (out, blocks, count, side) in enumerate(zip(dims, depths, all_heads, strides, strict=True)):
            embedding = TokenEmbedding(width, out, side)
            grid = embedding.grid(*grid)
            class_token = pool == "cls" and index + 1 == len(dims)
            tokens = Tokens(grid, prefix=int(class_token))
            if index == 0:
                self.tokens = tokens
            layers = []
            for _ in range(blocks):
                mixer = CvTAttention(
                    out,
                    tokens,
                    heads=count,
                    dim_head=dim_head,
                    kv_stride=kv_stride,
                    qkv_bias=qkv_bias,
                    attention=attention,
                    dropout=dropout,
                )
                layers.append(CvTBlock(out, mixer, mlp_ratio * out, dropout=dropout, drop_path=next(rates)))
            self.stages.append(CvTStage(embedding, out, class_token, layers))
            sizes += [tokens.count * out] * blocks
            width = out
        self.depths, self.recomputed = depths, worth_recomputing(sizes)
        self.norm = nn.LayerNorm(self.num_features)
        self.head = classifier(self.num_features, num_classes)
        self.apply(_initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to the tokens (b n c) after the last block."""
        check_sides(images.shape[-2], images.shape[-1])
        x, tokens = images, None
        recomputed = self.recomputed if self.grad_checkpointing and torch.is_grad_enabled() else 0
        for stage, depth in zip(self.stages, self.depths, strict=True):
            x = x if tokens is None else to_map(x, tokens)
            x, tokens = stage(x, recomputed)
            recomputed -= depth
        return x

    def pooled(self, features: Tensor) -> Tensor:
        """Maps the tokens (b n c) after the last block to the vector (b c) that the classifier sees."""
        features = self.norm(features)
        return features[:, 0] if self.pool == "cls" else features.mean(dim=1)

    @torch.no_grad()
    def fuse(self) -> "CvT":
        """Folds every BatchNorm into the convolution before it, in place.

        For inference only: logits stay the same, and weights saved afterwards fit no unfused net.

        Returns:
            The net itself, in eval mode.
        """
        fuse(self)
        return self.eval()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, CvTStage) and module.class_token is not None:
        nn.init.trunc_normal_(module.class_token, std=0.02)

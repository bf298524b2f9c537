"""Self-attention: projections, optional rotation, any kernel, output.

Shapes: b batch, h heads, n tokens, c width, d width of a head.
"""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from vix.attention import AttentionFactory, AttentionSpec, ShorteningAttention, SoftmaxAttention
from vix.layers import Linear, check_counts, check_rates, has_hooks, linear
from vix.mixers.base import Mixer
from vix.positions import RotaryPosition
from vix.tokens import Tokens


class SelfAttention(Mixer):
    """Gives a kernel the queries, keys and values that it asks for, and maps its output back to the width of a token.

    Args:
        dim: Width of a token.
        tokens: The tokens that it is built for.
        heads: Number of heads.
        dim_head: Width of a head; `heads * dim_head` need not be `dim`.
        attention: Makes the kernel.
        rotary: Rotation of queries and keys: `rope` along the sequence, `rope_axial` along both axes, None for none.
        position_grid: Rows and columns of the tokens that rotations were trained with; left out, those of each image.
        qkv_bias: Whether the projections of queries, keys and values have a bias.
        one_kv_head: Whether a single head of keys and values serves all queries.
        share_kv: Whether values are the keys (before rotation), from one projection.
        dropout: Probability of dropping a value of the output.

    Raises:
        ValueError: If a size is not positive or does not suit the rotation.
    """

    def __init__(
        self,
        dim: int,
        tokens: Tokens,
        *,
        heads: int = 4,
        dim_head: int = 32,
        attention: AttentionFactory = SoftmaxAttention,
        rotary: Literal["rope", "rope_axial"] | None = None,
        position_grid: tuple[int, int] | None = None,
        qkv_bias: bool = False,
        one_kv_head: bool = False,
        share_kv: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(heads=heads, dim_head=dim_head)
        check_rates(dropout=dropout)
        self.dim_head = dim_head
        kv_heads = 1 if one_kv_head else heads
        self.split = [heads, kv_heads] if share_kv else [heads, kv_heads, kv_heads]
        self.project = Linear(dim, sum(self.split) * dim_head, bias=qkv_bias)
        axial = rotary == "rope_axial"
        self.rotary = RotaryPosition(tokens, dim_head, axial=axial, grid=position_grid) if rotary else None
        self.attention = attention(AttentionSpec(heads, dim_head, tokens, tokens))
        self.output = Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)

    def shortening(self) -> ShorteningAttention | None:
        """Returns the kernel if it may shorten tokens before they become keys: E^T (X W) = (E^T X) W.

        That is less work, and neither keys nor values are kept. Not with rotations or biases, which come in between,
        nor for few narrow heads, nor where a hook waits for the kernel to be called, which it is not.
        """
        kernel, bias = self.attention, getattr(self.project, "bias", None)
        if not isinstance(kernel, ShorteningAttention) or self.rotary is not None or bias is not None:
            return None
        wide = 2 * sum(self.split[1:]) * self.dim_head > self.project.in_features
        return kernel if wide and not has_hooks(kernel) else None

    def project_apart(self, x: Tensor, count: int | None) -> tuple[Tensor, ...]:
        """Maps tokens (b n c) to all heads of queries (b n c'), keys and values, where asked for of the first queries.

        Split before the heads are: gradients are then joined where they lie, in one pass.
        """
        sizes = [heads * self.dim_head for heads in self.split]
        if count is None or not self.attention.queries_apart or self.rotary is not None:
            return self.project(x).split(sizes, dim=-1)
        # The first rows of the weights are the queries'.
        sizes = [sizes[0], sum(sizes[1:])]
        weights = self.project.weight.split(sizes)
        bias: Tensor | None = getattr(self.project, "bias", None)
        biases = (None, None) if bias is None else bias.split(sizes)
        q, rest = map(linear, (x[:, :count], x), weights, biases)
        return q, *rest.chunk(len(self.split) - 1, dim=-1)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        return self.mixed(x, tokens, None)

    def first(self, x: Tensor, tokens: Tokens, count: int) -> Tensor:
        """Maps the same to the first tokens (b count c) alone, of which alone there are queries where a kernel can."""
        return self.mixed(x, tokens, count)

    def mixed(self, x: Tensor, tokens: Tokens, count: int | None) -> Tensor:
        """Maps (b n c) to (b n c), or to the first tokens."""
        kernel = self.shortening()
        if kernel is not None:
            out = kernel.from_tokens(x, self.project.weight, [heads * self.dim_head for heads in self.split], count)
            return self.dropout(self.output(rearrange(out, "b h n d -> b n (h d)")))
        q, k, *own_v = (
            rearrange(part, "b n (h d) -> b h n d", d=self.dim_head) for part in self.project_apart(x, count)
        )
        v = own_v[0] if own_v else k
        if self.rotary is not None:
            q, k = self.rotary(q, tokens), self.rotary(k, tokens)
        if k.shape[1] != q.shape[1] and not self.attention.accepts_one_kv_head:
            heads = q.shape[1]
            k, v = k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1)
        if count is None:
            out = self.attention(q, k, v)
        elif self.attention.queries_apart:
            out = self.attention(q[..., :count, :], k, v)
        else:
            out = self.attention.first(q, k, v, count)
        return self.dropout(self.output(rearrange(out, "b h n d -> b n (h d)")))

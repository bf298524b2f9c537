"""Self-attention: projections, optional rotation, any kernel, output.

Shapes: b batch, h heads, n tokens, c width, d width of a head.
"""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vix.attention import AttentionFactory, AttentionSpec, ShorteningAttention, SoftmaxAttention
from vix.layers import check_counts, check_rates
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
        self.project = nn.Linear(dim, sum(self.split) * dim_head, bias=qkv_bias)
        axial = rotary == "rope_axial"
        self.rotary = RotaryPosition(tokens, dim_head, axial=axial, grid=position_grid) if rotary else None
        self.attention = attention(AttentionSpec(heads, dim_head, tokens, tokens))
        self.output = nn.Linear(heads * dim_head, dim)
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
        hooks = (kernel._forward_pre_hooks, kernel._forward_hooks, kernel._backward_pre_hooks, kernel._backward_hooks)
        return kernel if wide and not any(hooks) else None

    def project_shortened(self, x: Tensor, kernel: ShorteningAttention) -> list[Tensor]:
        """Maps tokens (b n c) to queries (b h n d) and shortened keys and values (b h r d)."""
        of_q, of_k, *of_v = self.project.weight.split([heads * self.dim_head for heads in self.split])
        x_k, x_v = kernel.shorten(x, x)
        parts = ((x, of_q), (x_k, of_k), (x_v, of_v[0] if of_v else of_k))
        return [
            rearrange(functional.linear(part, weight), "b n (h d) -> b h n d", d=self.dim_head)
            for part, weight in parts
        ]

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        kernel = self.shortening()
        if kernel is not None:
            out = kernel.attend(*self.project_shortened(x, kernel))
            return self.dropout(self.output(rearrange(out, "b h n d -> b n (h d)")))
        # Split before the heads are: gradients are then joined where they lie, in one pass.
        parts = self.project(x).split([heads * self.dim_head for heads in self.split], dim=-1)
        q, k, *own_v = (rearrange(part, "b n (h d) -> b h n d", d=self.dim_head) for part in parts)
        v = own_v[0] if own_v else k
        if self.rotary is not None:
            q, k = self.rotary(q, tokens), self.rotary(k, tokens)
        if k.shape[1] != q.shape[1] and not self.attention.accepts_one_kv_head:
            k, v = k.expand_as(q), v.expand_as(q)
        out = self.attention(q, k, v)
        return self.dropout(self.output(rearrange(out, "b h n d -> b n (h d)")))

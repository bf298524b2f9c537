"""The attention of timm and of torch around any kernel, recognised by what it holds and by what it computes.

None of these packages is imported.
Shapes: b batch, h heads, n tokens, c width, d width of a head.
"""

import copy
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from vix.attention import AttentionFactory, AttentionSpec, SoftmaxAttention
from vix.tokens import Tokens

# What timm's attention may hold; a module that holds more, such as Swin's table of positions, does more.
TIMM_PARTS = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})
# Of a probe's largest output, in float64.
PROBE_TOLERANCE = 1e-6


class FusedProjection(nn.Module):
    """timm's attention (`qkv`, `q_norm`, `k_norm`, `norm`, `gate`, `proj`) around a kernel, its modules kept by name.

    Args:
        original: timm's module.
        attention: Makes the kernel.
        tokens: The tokens of an image.
    """

    def __init__(self, original: nn.Module, attention: AttentionFactory, tokens: Tokens) -> None:
        super().__init__()
        theirs: Any = original
        self.num_heads: int = theirs.num_heads
        self.qkv: nn.Linear = theirs.qkv
        self.q_norm = getattr(theirs, "q_norm", nn.Identity())
        self.k_norm = getattr(theirs, "k_norm", nn.Identity())
        self.attention = attention(AttentionSpec(self.num_heads, self.head_dim, tokens, tokens))
        self.norm = getattr(theirs, "norm", nn.Identity())
        self.gate: nn.Linear | None = getattr(theirs, "gate", None)
        self.proj: nn.Linear = theirs.proj
        self.proj_drop: nn.Module = theirs.proj_drop

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.qkv.out_features // (3 * self.num_heads)

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        """Whether a module has these parts and no others."""
        own = {*module._parameters, *module._buffers, *module._modules}
        return (
            {"qkv", "proj", "proj_drop"} <= own <= TIMM_PARTS
            and isinstance(module.qkv, nn.Linear)
            and isinstance(getattr(module, "num_heads", None), int)
        )

    @staticmethod
    def on_tokens(module: nn.Module, x: Tensor) -> Tensor:
        """Calls such a module on tokens (b n c)."""
        return cast(Tensor, module(x))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Maps (b n c) to (b n c).

        Raises:
            ValueError: If a mask is given: these kernels have no pairs of tokens to mask.
        """
        if attn_mask is not None or is_causal:
            raise ValueError(f"{type(self.attention).__name__} takes no mask: it has no pairs of tokens to leave out")
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        out = self.norm(rearrange(self.attention(self.q_norm(q), self.k_norm(k), v), "b h n d -> b n (h d)"))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class PackedProjection(nn.Module):
    """`torch.nn.MultiheadAttention` of tokens among themselves around a kernel, its parameters kept by name.

    Args:
        original: torch's module.
        attention: Makes the kernel.
        tokens: The tokens of an image.
    """

    def __init__(self, original: nn.Module, attention: AttentionFactory, tokens: Tokens) -> None:
        super().__init__()
        theirs: Any = original
        self.num_heads, self.batch_first = theirs.num_heads, theirs.batch_first
        self.in_proj_weight, self.in_proj_bias = theirs.in_proj_weight, theirs.in_proj_bias
        self.attention = attention(AttentionSpec(theirs.num_heads, theirs.head_dim, tokens, tokens))
        self.out_proj = theirs.out_proj

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        """Whether it is torch's, with one matrix for queries, keys and values and nothing added to the keys."""
        return (
            isinstance(module, nn.MultiheadAttention)
            and module._qkv_same_embed_dim
            and module.bias_k is None
            and not module.add_zero_attn
        )

    @staticmethod
    def on_tokens(module: nn.Module, x: Tensor) -> Tensor:
        """Calls such a module on tokens (b n c)."""
        return cast(Tensor, module(x, x, x, need_weights=False)[0])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Maps (b n c), or (n b c) where not batch first, to the same and None for the weights.

        Raises:
            ValueError: If weights are asked for, or a mask or other keys are given.
        """
        kernel = type(self.attention).__name__
        if need_weights:
            raise ValueError(f"{kernel} has no weights between tokens to return: call it with need_weights=False")
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ValueError(f"{kernel} takes no mask: it has no pairs of tokens to leave out")
        if key is not query or value is not query:
            raise ValueError(f"{kernel} was swapped in for tokens among themselves, got other keys or values")
        x = query if self.batch_first else query.transpose(0, 1)
        projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        out = self.out_proj(rearrange(self.attention(q, k, v), "b h n d -> b n (h d)"))
        return (out if self.batch_first else out.transpose(0, 1)), None


Wrapper = type[FusedProjection] | type[PackedProjection]
WRAPPERS: tuple[Wrapper, ...] = (FusedProjection, PackedProjection)


@torch.no_grad()
def is_softmax(module: nn.Module, wrapper: Wrapper) -> bool:
    """Whether a module gives what softmax attention over its own projections gives, on five random tokens.

    Its parts alone do not tell: attention over channels or in windows may have the same. The probe works on a copy.
    """
    theirs: Any = copy.deepcopy(module).to("cpu", torch.float64).eval()
    ours: Any = wrapper(theirs, SoftmaxAttention, Tokens((1, 5))).eval()
    width = next(theirs.parameters()).shape[1]
    x = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        expected, found = (wrapper.on_tokens(each, x) for each in (theirs, ours))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        # It wants something else than tokens (b n c), so it is another kind of attention.
        return False
    if expected.shape != found.shape:
        return False
    return bool((expected - found).abs().max() <= PROBE_TOLERANCE * found.abs().max())

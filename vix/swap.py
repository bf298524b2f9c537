"""Another attention in a trained vision transformer, ours or of timm or torchvision, on the weights that it has.

Modules of other packages are recognised by what they hold and by what they compute, so none is imported here.
Shapes: b batch, h heads, n tokens, c width, d width of a head.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from vix.attention import Attention, AttentionFactory, AttentionSpec, SoftmaxAttention
from vix.spec import Recorded
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

    def __init__(self, original: nn.MultiheadAttention, attention: AttentionFactory, tokens: Tokens) -> None:
        super().__init__()
        self.num_heads, self.batch_first = original.num_heads, original.batch_first
        self.in_proj_weight, self.in_proj_bias = original.in_proj_weight, original.in_proj_bias
        self.attention = attention(AttentionSpec(original.num_heads, original.head_dim, tokens, tokens))
        self.out_proj = original.out_proj

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        """Whether it is torch's, with one matrix for queries, keys and values and nothing added to the keys."""
        return (
            isinstance(module, nn.MultiheadAttention)
            and module.in_proj_weight is not None
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


def swap_attention(
    model: nn.Module,
    attention: AttentionFactory,
    layers: Sequence[int] | None = None,
    *,
    tokens: Tokens | None = None,
) -> nn.Module:
    """Puts a kernel in the place of a vision transformer's softmax attention, in place, and keeps all its weights.

    What a kernel learns starts as near to softmax as it can be (`Attention.approach_softmax`). Names in the state stay
    what they were; a kernel's own are added as `...attention.*`. The dropout of attention weights is the kernel's
    matter: the model's is not carried over.

    Args:
        model: A ViT or DeiT of timm, a ViT of torchvision, a ViT of ours, or what is built like them.
        attention: A kernel of `vix.attention`, or a partial of one.
        layers: Which attentions, counted from 0 in the order of the model; left out, all.
        tokens: The tokens of an image; left out, what the model says itself.

    Returns:
        The model.

    Raises:
        ValueError: If the model has no softmax attention that is known here, or no such layers; nothing is changed.
    """
    places = attention_layers(model)
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no softmax attention to swap: none of timm's, torch's or ours that computes "
            "softmax(q k^T / sqrt(d)) v of its tokens"
        )
    names = list(places)
    chosen = range(len(names)) if layers is None else sorted(set(layers))
    if wrong := [layer for layer in chosen if not 0 <= layer < len(names)]:
        raise ValueError(f"layers: {type(model).__name__} has attentions 0 to {len(names) - 1}, got {wrong[0]}")
    made: dict[nn.Module, nn.Module] = {}
    for name in (names[layer] for layer in chosen):
        original, wrapper = model.get_submodule(name), places[name]
        if wrapper is None:
            kernel: nn.Module = attention(cast(SoftmaxAttention, original).spec)
            _refuse_lost_bias(model.get_submodule(name.rpartition(".")[0]), kernel)
        else:
            kernel = wrapper(original, attention, tokens or tokens_of(model))
        for each in kernel.modules():
            if isinstance(each, Attention):
                each.approach_softmax()
        weight = next(original.parameters(), next(model.parameters()))
        made[original] = kernel.to(weight.device, weight.dtype).train(original.training)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in made:
                setattr(parent, name, made[child])
    if isinstance(model, Recorded):
        for argument in {"attention", "shrinking_attention"} & {"attention", *model._recorded}:
            model._recorded[argument] = attention if layers is None else _Several()
    return model


def attention_layers(model: nn.Module) -> dict[str, Wrapper | None]:
    """Names of the softmax attentions that can be swapped, in order, with what takes their place.

    Returns:
        None for a kernel of ours, in whose place another kernel goes as it is.
    """
    # Their fast path reads the weights of their attention past any forward.
    closed = {
        child
        for layer in model.modules()
        if isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        for child in layer.children()
    }
    found: dict[str, Wrapper | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, SoftmaxAttention):
            found[name] = None
        elif module not in closed:
            for wrapper in WRAPPERS:
                if wrapper.recognises(module) and _is_softmax(module, wrapper):
                    found[name] = wrapper
    return found


def tokens_of(model: nn.Module) -> Tokens:
    """The tokens of an image as a model says them: ours, timm's or torchvision's.

    Raises:
        ValueError: If it does not say.
    """
    about: Any = model
    if isinstance(getattr(model, "tokens", None), Tokens):
        return about.tokens
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None:
        return Tokens((int(grid[0]), int(grid[1])), int(getattr(model, "num_prefix_tokens", 1)))
    if all(isinstance(getattr(model, name, None), int) for name in ("image_size", "patch_size", "seq_length")):
        side = about.image_size // about.patch_size
        return Tokens((side, side), about.seq_length - side * side)
    raise ValueError(f"{type(model).__name__} does not say how many tokens it has: give tokens=Tokens((y, x), prefix)")


def _refuse_lost_bias(place: nn.Module, kernel: nn.Module) -> None:
    """LeViT's positions are a bias on the logits, which most kernels have none of."""
    if getattr(place, "bias", None) is not None and not getattr(kernel, "accepts_bias", False):
        raise ValueError(
            f"{type(kernel).__name__} takes no bias on its logits, which tells {type(place).__name__} where tokens "
            "stand: swap in a net made with position='values' or 'none'"
        )


@torch.no_grad()
def _is_softmax(module: nn.Module, wrapper: Wrapper) -> bool:
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


class _Several:
    """Stands in a net's record for attentions that differ by layer, which a spec has no words for."""

    def __repr__(self) -> str:
        return "attention that differs by layer (vix.Swapped has words for it)"

"""The named systems: a body, an embedding, a mixer, and nothing else.

X in ViX is the first letter of the attention: T softmax transformer, L Linformer, P Performer, N Nyströmformer.
`Hybrid` means a convolutional instead of a linear embedding. Every system takes the arguments of its body;
`position="rope"` is its RoPE version. LeX, CvX and CCX are the bodies LeViT, CvT and CCT with the attention X, and
nothing else changed; where an attention cannot do what a body asks of it, its system says what it does instead.

Source: Jeevan and Sethi, "Vision Xformers: Efficient Attention for Image Classification", 2021, arXiv:2107.02239, and
"Resource-efficient Hybrid X-formers for Vision", WACV 2022.
"""

from functools import partial
from typing import Any, ClassVar, Literal

from vix.attention import AttentionFactory, Linformer, NystromAttention, Performer, SoftmaxAttention
from vix.backbones import CCT, Backbone, CvT, LeViT, VisionTransformer
from vix.layers import check_counts, check_rates
from vix.mixers import FourierMixing, MLPMixing, SelfAttention
from vix.positions import Position
from vix.tokens import pair


class ViT(VisionTransformer):
    """Vision Transformer: the ViT body with self-attention, softmax unless `attention` says otherwise.

    Args:
        attention: Makes the kernel: a class of `vix.attention`, a partial of one, or your own.
        heads: Number of heads.
        dim_head: Width of a head; `heads * dim_head` need not be `dim`.
        position: `learned` adds a table to the tokens; `rope` turns queries and keys along the sequence and
            `rope_axial` along both axes; `none` tells nothing.
        position_grid: Rows and columns of the tokens that rotations were trained with, onto which those of a finer
            grid are squeezed; left out, those of each image.
        qkv_bias: Whether the projections of queries, keys and values have a bias.
        one_kv_head: Whether a single head of keys and values serves all queries.
        share_kv: Whether values are the keys, from one projection.
        dropout: Probability of dropping a value of the attention's output and in the feed-forward networks.
        proj_dropout: The same for the attention's output alone; left out, `dropout`. As published it is 0 but in ViT.
        vit: The arguments of `vix.backbones.VisionTransformer`.
    """

    settles = ("mixer",)

    def __init__(
        self,
        *,
        attention: AttentionFactory = SoftmaxAttention,
        heads: int = 4,
        dim_head: int = 32,
        position: Position = "learned",
        position_grid: tuple[int, int] | None = None,
        qkv_bias: bool = False,
        one_kv_head: bool = False,
        share_kv: bool = False,
        dropout: float = 0.0,
        proj_dropout: float | None = None,
        **vit: Any,
    ) -> None:
        if position not in ("learned", "rope", "rope_axial", "none"):
            raise ValueError(f"position must be one of learned, rope, rope_axial, none, got {position!r}")
        if proj_dropout is not None:
            check_rates(proj_dropout=proj_dropout)
        grid = None if position_grid is None else pair(position_grid, "position_grid")
        rotary = position if position == "rope" or position == "rope_axial" else None
        mixer = partial(
            SelfAttention,
            heads=heads,
            dim_head=dim_head,
            attention=attention,
            rotary=rotary,
            position_grid=grid,
            qkv_bias=qkv_bias,
            one_kv_head=one_kv_head,
            share_kv=share_kv,
            dropout=dropout if proj_dropout is None else proj_dropout,
        )
        added: Literal["learned", "none"] = "learned" if position == "learned" else "none"
        super().__init__(mixer=mixer, position=added, dropout=dropout, **vit)
        if rotary:
            self.pinned["position_grid"] = grid or self.tokens.grid


class ViL(ViT):
    """Vision Linformer: ViT with Linformer's attention over `rank` learned keys.

    Args:
        rank: Number of keys that are left, Linformer's k.
        share_projection: Whether values are shortened by the keys' matrix or by their own.
        attn_dropout: Probability of dropping an attention weight, which is where the published `dropout` acts.
        vit: The arguments of `ViT`; as published has `share_kv=True`, and without RoPE or hybrid `one_kv_head=True`.
    """

    settles = ("attention",)

    def __init__(self, *, rank: int = 64, share_projection: bool = True, attn_dropout: float = 0.0, **vit: Any) -> None:
        check_rates(attn_dropout=attn_dropout)
        linformer = partial(Linformer, rank=rank, share_projection=share_projection, dropout=attn_dropout)
        super().__init__(attention=linformer, **vit)


class ViP(ViT):
    """Vision Performer: ViT with Performer's attention through random features.

    Args:
        features: Number of random features; left out, 96 for heads of 32, and 110 as published.
        as_published: Whether to use the published stabiliser, with which predictions depend on batch mates.
        redraw: Optimiser steps after which the features are drawn anew, each time; None keeps them.
        vit: The arguments of `ViT`; as published has `qkv_bias=True`.
    """

    settles = ("attention",)

    def __init__(
        self, *, features: int | None = None, as_published: bool = False, redraw: int | None = None, **vit: Any
    ) -> None:
        super().__init__(
            attention=partial(Performer, features=features, as_published=as_published, redraw=redraw), **vit
        )


class ViN(ViT):
    """Vision Nyströmformer: ViT with Nyström attention through landmarks.

    Args:
        num_landmarks: Number of landmarks; left out, 64, or a quarter of the tokens where that is less.
        as_published: Whether to use the published start of the pseudo-inverse, with which predictions depend on batch
            mates, and its zeros in front.
        vit: The arguments of `ViT`.
    """

    settles = ("attention",)

    def __init__(self, *, num_landmarks: int | None = None, as_published: bool = False, **vit: Any) -> None:
        super().__init__(
            attention=partial(NystromAttention, num_landmarks=num_landmarks, as_published=as_published), **vit
        )


class FNet(VisionTransformer):
    """The ViT body with Fourier mixing: no parameters between tokens, so no heads and no rotation.

    Args:
        vit: The arguments of `vix.backbones.VisionTransformer`.
    """

    settles = ("mixer",)

    def __init__(self, **vit: Any) -> None:
        super().__init__(mixer=FourierMixing, **vit)


class MLPMixer(VisionTransformer):
    """The ViT body with MLP mixing; like its paper without class token and positions, normalised before the mean.

    Source: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, arXiv:2105.01601.

    Args:
        token_dim: Hidden width of the mixing along tokens, the paper's D_S; None takes the number of tokens, as
            published.
        pool: `mean`, or `cls` with a class token.
        position: `none`, or `learned`.
        dropout: Probability of dropping a value in both networks.
        vit: The arguments of `vix.backbones.VisionTransformer`.
    """

    settles: ClassVar[tuple[str, ...]] = ("mixer", "norm")

    def __init__(
        self,
        *,
        token_dim: int | None = 256,
        pool: Literal["cls", "mean"] = "mean",
        position: Literal["learned", "none"] = "none",
        dropout: float = 0.0,
        **vit: Any,
    ) -> None:
        if token_dim is not None:
            check_counts(token_dim=token_dim)
        mixer = partial(MLPMixing, hidden=token_dim, dropout=dropout)
        super().__init__(mixer=mixer, pool=pool, position=position, dropout=dropout, norm="tokens", **vit)
        self.pinned["token_dim"] = token_dim or self.tokens.count


class HybridViT(ViT):
    """ViT with a convolutional embedding."""

    settles = ("embedding",)

    def __init__(self, **vit: Any) -> None:
        super().__init__(embedding="convolutional", **vit)


class HybridViL(ViL):
    """ViL with a convolutional embedding."""

    settles = ("embedding",)

    def __init__(self, **vil: Any) -> None:
        super().__init__(embedding="convolutional", **vil)


class HybridViP(ViP):
    """ViP with a convolutional embedding."""

    settles = ("embedding",)

    def __init__(self, **vip: Any) -> None:
        super().__init__(embedding="convolutional", **vip)


class HybridViN(ViN):
    """ViN with a convolutional embedding."""

    settles = ("embedding",)

    def __init__(self, **vin: Any) -> None:
        super().__init__(embedding="convolutional", **vin)


class HybridFNet(FNet):
    """FNet with a convolutional embedding."""

    settles = ("embedding",)

    def __init__(self, **fnet: Any) -> None:
        super().__init__(embedding="convolutional", **fnet)


class HybridMLPMixer(MLPMixer):
    """MLP-Mixer with a convolutional embedding."""

    settles = ("embedding",)

    def __init__(self, **mixer: Any) -> None:
        super().__init__(embedding="convolutional", **mixer)


class LeViN(LeViT):
    """LeViT with Nyström attention, which has no logits to add a bias to: values tell positions instead.

    Between stages there are four keys for each query, and no residual convolution.

    Args:
        num_landmarks: Number of landmarks; left out, 64, or a quarter of the tokens where that is less.
        as_published: As in `ViN`; for a single stage only, since the published code has nothing between stages.
        position: `values` adds a 3x3 depth-wise convolution of the values to the attention's output; `none` nothing.
        levit: The arguments of `LeViT`.
    """

    settles = ("attention", "shrinking_attention")

    def __init__(
        self,
        *,
        num_landmarks: int | None = None,
        as_published: bool = False,
        position: Literal["values", "none"] = "values",
        **levit: Any,
    ) -> None:
        attention = partial(NystromAttention, num_landmarks=num_landmarks, as_published=as_published)
        shrinking = partial(attention, **NystromAttention.options_for_other_keys)
        super().__init__(attention=attention, shrinking_attention=shrinking, position=position, **levit)


class LeViP(LeViT):
    """LeViT with Performer's attention, which has no logits to add a bias to: values tell positions instead.

    Args:
        features: Number of random features; left out, 96 for heads of 32, and 110 as published.
        as_published: As in `ViP`.
        redraw: As in `ViP`.
        position: `values` adds a 3x3 depth-wise convolution of the values to the attention's output; `none` nothing.
        levit: The arguments of `LeViT`.
    """

    settles = ("attention", "shrinking_attention")

    def __init__(
        self,
        *,
        features: int | None = None,
        as_published: bool = False,
        redraw: int | None = None,
        position: Literal["values", "none"] = "values",
        **levit: Any,
    ) -> None:
        attention = partial(Performer, features=features, as_published=as_published, redraw=redraw)
        super().__init__(attention=attention, shrinking_attention=attention, position=position, **levit)


class CvN(CvT):
    """CvT with Nyström attention, without its residual convolution where there are fewer keys than queries.

    Args:
        num_landmarks: Number of landmarks; left out, 64, or a quarter of the keys where that is less.
        as_published: As in `ViN`; for `kv_stride=1` only, since the published code has as many keys as queries.
        kv_stride: Every how many tokens along each axis there is a key.
        cvt: The arguments of `CvT`.
    """

    settles = ("attention",)

    def __init__(
        self, *, num_landmarks: int | None = None, as_published: bool = False, kv_stride: int = 2, **cvt: Any
    ) -> None:
        attention = partial(NystromAttention, num_landmarks=num_landmarks, as_published=as_published)
        if kv_stride != 1:
            attention = partial(attention, **NystromAttention.options_for_other_keys)
        super().__init__(attention=attention, kv_stride=kv_stride, **cvt)


class CvP(CvT):
    """CvT with Performer's attention.

    Args:
        features: Number of random features; left out, 96 for heads of 32, and 110 as published.
        as_published: As in `ViP`.
        redraw: As in `ViP`.
        cvt: The arguments of `CvT`.
    """

    settles = ("attention",)

    def __init__(
        self, *, features: int | None = None, as_published: bool = False, redraw: int | None = None, **cvt: Any
    ) -> None:
        super().__init__(
            attention=partial(Performer, features=features, as_published=as_published, redraw=redraw), **cvt
        )


class CCN(CCT):
    """CCT with Nyström attention.

    Args:
        num_landmarks: Number of landmarks; left out, 64, or a quarter of the tokens where that is less.
        as_published: As in `ViN`.
        cct: The arguments of `CCT`.
    """

    settles = ("attention",)

    def __init__(self, *, num_landmarks: int | None = None, as_published: bool = False, **cct: Any) -> None:
        super().__init__(
            attention=partial(NystromAttention, num_landmarks=num_landmarks, as_published=as_published), **cct
        )


class CCP(CCT):
    """CCT with Performer's attention.

    Args:
        features: Number of random features; left out, 96 for heads of 32, and 110 as published.
        as_published: As in `ViP`.
        redraw: As in `ViP`.
        cct: The arguments of `CCT`; as published has `qkv_bias=True`.
    """

    settles = ("attention",)

    def __init__(
        self, *, features: int | None = None, as_published: bool = False, redraw: int | None = None, **cct: Any
    ) -> None:
        super().__init__(
            attention=partial(Performer, features=features, as_published=as_published, redraw=redraw), **cct
        )


SYSTEMS: dict[str, type[Backbone]] = {
    system.__name__: system
    for system in (
        *(ViT, ViL, ViP, ViN, FNet, MLPMixer),
        *(HybridViT, HybridViL, HybridViP, HybridViN, HybridFNet, HybridMLPMixer),
        *(LeViT, LeViN, LeViP),
        *(CvT, CvN, CvP),
        *(CCT, CCN, CCP),
    )
}
"""Every named system; tests, tables and benchmarks walk this."""

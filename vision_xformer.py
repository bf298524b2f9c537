"""The five nets of the PyPI package `vision_xformer` 0.2.0, so that code written for it runs unchanged from this clone.

Names, signatures and arithmetic are the package's: an image's logits depend on its batch mates in ViN and ViP, the
embedding is normalised, and an image smaller than `image_size` takes the first positions, wherever its tokens stand.
State dicts of the package load; what `state_dict()` gives has the names of `vix`. The attributes inside are those of
`vix`, whose own nets have none of these peculiarities: `from vix import ViN`.

Source: Jeevan and Sethi, "Vision Xformers: Efficient Attention for Image Classification", 2021, arXiv:2107.02239.
"""

from typing import Any, Literal

from torch import Tensor, nn

import vix
from vix.backbones import Backbone, VisionTransformer
from vix.positions import LearnedPosition
from vix.published import original
from vix.published.keys import join, sources
from vix.tokens import Tokens

__all__ = ["FNet", "FNet2D", "ViL", "ViN", "ViP"]

Size = int | tuple[int, int]
Pool = Literal["cls", "mean"]


class FirstPositions(LearnedPosition):
    """Adds the first rows of a learned table, so that a smaller image passes though its tokens stand elsewhere.

    Args:
        whole: The table.
    """

    def __init__(self, whole: LearnedPosition) -> None:
        super().__init__(whole.tokens, whole.table.shape[-1])
        self.table = whole.table

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c) for any n up to the table's length."""
        if tokens.count > self.tokens.count:
            return super().forward(x, tokens)
        return x + self.table[:, : tokens.count]


def take_their_keys(net: "Package", state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Renames in place what a state dict of the package holds of a net; torch then judges whether it is complete."""
    model, ours = original(net.system), net.state_dict()
    for key, names in sources(model, model.complete(net.arguments), ours).items():
        if all(prefix + name in state for name in names):
            value = join([state[prefix + name] for name in names], ours[key])
            if value is None:
                shapes = ", ".join(f"{prefix}{name} {tuple(state[prefix + name].shape)}" for name in names)
                raise RuntimeError(f"{type(net).__name__} needs {tuple(ours[key].shape)} of {shapes}")
            state[prefix + key] = value
            for name in names:
                del state[prefix + name]


class Package(Backbone):
    """Reads the package's arguments and state dicts; stands in front of the net of ours that computes the same.

    Args:
        arguments: The arguments of the package's class.
    """

    def __init__(self, **arguments: Any) -> None:
        self.system = f"pip_{type(self).__name__}"
        super().__init__(**original(self.system).init_args(arguments))
        self.arguments = arguments
        nn.Module.register_load_state_dict_pre_hook(self, take_their_keys)


class Sequence(Package, VisionTransformer):
    """What four of the five share: learned positions, of which a smaller image takes the first."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.position is not None:
            self.position = FirstPositions(self.position)


class ViN(Sequence, vix.ViN):
    """Vision Nyströmformer."""

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: Size,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        num_landmarks: int = 64,
        pool: Pool = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            num_landmarks=num_landmarks,
            pool=pool,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            emb_dropout=emb_dropout,
        )


class ViP(Sequence, vix.ViP):
    """Vision Performer."""

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: Size,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        pool: Pool = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            pool=pool,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            emb_dropout=emb_dropout,
        )


class ViL(Sequence, vix.ViL):
    """Vision Linformer."""

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: Size,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        k: int = 64,
        one_kv_head: bool = True,
        share_kv: bool = True,
        pool: Pool = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            k=k,
            one_kv_head=one_kv_head,
            share_kv=share_kv,
            pool=pool,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            emb_dropout=emb_dropout,
        )


class FNet(Sequence, vix.FNet):
    """FNet."""

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: Size,
        num_classes: int,
        dim: int,
        depth: int,
        mlp_dim: int,
        pool: Pool = "cls",
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            mlp_dim=mlp_dim,
            pool=pool,
            channels=channels,
            dropout=dropout,
            emb_dropout=emb_dropout,
        )


class FNet2D(Package, vix.FNet2D):
    """FNet2D."""

    def __init__(self, *, num_classes: int, dim: int, depth: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__(num_classes=num_classes, dim=dim, depth=depth, mlp_dim=mlp_dim, dropout=dropout)

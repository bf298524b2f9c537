"""What every net offers, whatever its body: sizes, features and head apart, and what an optimiser should know."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from vix.layers import check_counts
from vix.spec import Recorded
from vix.tokens import Tokens, pair


class Backbone(Recorded, ABC):
    """Maps images (b, channels, height, width) to logits (b, num_classes).

    Args:
        image_size: Side of the images in pixels, or (height, width).
        num_classes: Number of classes.
        channels: Channels of the images.

    Raises:
        ValueError: If a size is not a positive whole number.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The sizes of the body's paper by their names there: arguments of the constructor."""
    tokens: Tokens
    """The tokens of an image of `image_size`, as the first block sees them."""
    num_features: int
    """Width of the vector that the classifier sees."""
    head: nn.Module
    """The classifier."""

    def __init__(self, *, image_size: int | tuple[int, int], num_classes: int, channels: int) -> None:
        super().__init__()
        self.image_size = pair(image_size, "image_size")
        check_counts(num_classes=num_classes, channels=channels)
        self.num_classes, self.channels = num_classes, channels
        self.grad_checkpointing = False

    @classmethod
    def preset(cls, name: str, **arguments: Any) -> Self:
        """Makes a net of a size from the paper, whatever its attention: `LeViN.preset("128S", num_classes=10)`.

        Args:
            name: One of `presets`.
            arguments: Arguments of the constructor, which come before those of the size.

        Raises:
            ValueError: If there is no such size.
        """
        if name not in cls.presets:
            raise ValueError(f"{cls.__name__} has no preset {name!r}: it has {', '.join(cls.presets) or 'none'}")
        return cls(**{**cls.presets[name], **arguments})

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images to what the head pools, as timm has it."""

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """Pools features and maps them to logits."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to logits (b, num_classes).

        Raises:
            ValueError: If the images have another number of channels, or a size that the net cannot take.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"{type(self).__name__} takes images (batch, {self.channels}, height, width), got {tuple(images.shape)}"
            )
        return self.forward_head(self.forward_features(images))

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a fresh one, as timm has it.

        Raises:
            ValueError: If the number is not positive.
        """
        check_counts(num_classes=num_classes)
        weight = next(self.head.parameters())
        self.head = nn.Linear(self.num_features, num_classes).to(weight)
        self.num_classes = self._recorded["num_classes"] = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps only the input of each block for backward and computes the rest again, as timm has it."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names the parameters that should not decay though they are matrices: positions, class tokens and the like."""
        return {
            f"{path}.{name}".lstrip(".")
            for path, module in self.named_modules()
            for name in getattr(module, "undecayed", ())
            if isinstance(getattr(module, name), nn.Parameter)
        }

"""What every net offers, whatever its body: sizes, features and head apart, and what an optimiser should know."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vix.layers import check_counts
from vix.spec import Recorded
from vix.tokens import Tokens, pair


def check_classes(num_classes: int) -> None:
    """Refuses a number of classes that is neither positive nor 0, which stands for no classifier.

    Raises:
        ValueError: With the number.
    """
    if type(num_classes) is not int or num_classes:
        check_counts(num_classes=num_classes)


def classifier(num_features: int, num_classes: int) -> nn.Module:
    """Makes a linear classifier, or none for 0 classes."""
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()


class Backbone(Recorded, ABC):
    """Maps images (b, channels, height, width) to logits (b, num_classes).

    Args:
        image_size: Side of the images in pixels, or (height, width).
        num_classes: Number of classes; 0 leaves the classifier out, so that the pooled vector comes out.
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
    pinned: dict[str, Any]
    """Arguments that left out depend on the image's size, with the values that they took; see `resized`."""

    def __init__(self, *, image_size: int | tuple[int, int], num_classes: int, channels: int) -> None:
        super().__init__()
        self.image_size = pair(image_size, "image_size")
        check_classes(num_classes)
        check_counts(channels=channels)
        self.num_classes, self.channels = num_classes, channels
        self.grad_checkpointing = False
        self.pinned = {}

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

    def features_to_pool(self, images: Tensor) -> Tensor:
        """Maps images to what gives the same logits as their features: a body that can do less for them does."""
        return self.forward_features(images)

    @abstractmethod
    def pooled(self, features: Tensor) -> Tensor:
        """Maps features to the vector (b, num_features) that the classifier sees."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps what `forward_features` gave to logits, or with `pre_logits` to what the classifier sees, as in timm."""
        vector = self.pooled(features)
        logits: Tensor = vector if pre_logits else self.head(vector)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to logits (b, num_classes).

        Raises:
            ValueError: If the images have another number of channels, a size that the net cannot take, or, outside
                autocast, another dtype than the weights.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or 0 in images.shape:
            raise ValueError(
                f"{type(self).__name__} takes images (batch, {self.channels}, height, width), got {tuple(images.shape)}"
            )
        # replicas of DataParallel have no parameters by name
        dtype = next((weight.dtype for weight in self.parameters()), images.dtype)
        casts = torch.is_autocast_enabled(images.device.type) and images.is_floating_point()
        if images.dtype != dtype and not casts:
            raise ValueError(f"{type(self).__name__} takes images of {dtype} like its weights, got {images.dtype}")
        return self.forward_head(self.features_to_pool(images))

    def get_classifier(self) -> nn.Module:
        """Returns the classifier, as timm has it."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a fresh one, or with 0 by none, as timm has it.

        Raises:
            ValueError: If the number is negative.
        """
        check_classes(num_classes)
        self.head = classifier(self.num_features, num_classes).to(next(self.parameters()))
        self.num_classes = self._recorded["num_classes"] = num_classes

    @torch.no_grad()
    def resized(self, image_size: int | tuple[int, int]) -> Self:
        """Makes the same net for images of another size, with its weights.

        A token has as many pixels as before, so there are others. What belongs to their places is carried over to the
        new grid (`vix.resample`): learned positions, biases of distances, Linformer's projections, the networks of
        MLP-Mixer; rotations and sines are squeezed onto the grid that they were trained with.

        Args:
            image_size: Side of the images in pixels, or (height, width).

        Raises:
            ValueError: If the net cannot be built for this size, or a part of it cannot be carried over.
        """
        # the fresh weights are overwritten, so they need not disturb the caller's generator
        with torch.random.fork_rng(devices=[]):
            made = type(self)(**{**self._recorded, **self.pinned, "image_size": pair(image_size, "image_size")})
        made.to(next(self.parameters()))
        moved = [name for name, part in made.named_modules() if hasattr(part, "take_from")]
        inside = tuple(f"{name}." for name in moved)
        own = made.state_dict()
        state = {name: value for name, value in self.state_dict().items() if not name.startswith(inside)}
        for name, value in state.items():
            if name not in own or own[name].shape != value.shape:
                raise ValueError(
                    f"{name} {tuple(value.shape)} belongs to {self.tokens} and has no way to {made.tokens}"
                )
        made.load_state_dict(state, strict=False)
        for name in moved:
            part: Any = made.get_submodule(name)
            part.take_from(self.get_submodule(name))
        made.set_grad_checkpointing(self.grad_checkpointing)
        return made.train(self.training)

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

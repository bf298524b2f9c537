"""The data sets that `experiments/` names, as far as their sizes are known without a look at them."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Place:
    """Images as a net sees them.

    Args:
        name: The data set's class.
        image_size: Height and width.
        channels: Of an image.
        classes: Number of classes.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    classes: int


def places(experiments: Path) -> list[Place]:
    """Finds the data sets that the recipe and the overlays choose, in order; folders of images have no size yet."""
    paths = [experiments / "defaults.yaml", *sorted((experiments / "overlays").glob("*.yaml"))]
    found = [_place(path) for name in paths for path in _class_paths(name)]
    return list(dict.fromkeys(place for place in found if place is not None))


def _class_paths(path: Path) -> Iterator[str]:
    data = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("data") or {}
    if "class_path" in data:
        yield data["class_path"]


def _place(class_path: str) -> Place | None:
    module, _, name = class_path.rpartition(".")
    kind: Any = getattr(importlib.import_module(module), name)
    if not hasattr(kind, "num_classes"):
        return None
    return Place(name, kind.image_size, kind.channels, kind.num_classes)


def own_place(image_size: Sequence[int], channels: int, classes: int) -> Place:
    """The user's own images.

    Raises:
        ValueError: If the size is neither a side nor height and width.
    """
    if len(image_size) > 2:
        raise ValueError(f"--image_size takes a side, or height and width, got {' '.join(map(str, image_size))}")
    return Place("your images", (image_size[0], image_size[-1]), channels, classes)


def choose(known: Sequence[Place], names: Sequence[str]) -> list[Place]:
    """The data sets of these names, upper and lower case alike.

    Raises:
        ValueError: If there is none of a name.
    """
    by_name = {place.name.lower(): place for place in known}
    for name in names:
        if name.lower() not in by_name:
            raise ValueError(f"--data {name}: there are {', '.join(place.name for place in known)}")
    return [by_name[name.lower()] for name in names]

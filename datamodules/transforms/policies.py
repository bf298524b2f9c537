"""RandAugment and TrivialAugment with torchvision's operations and ranges, each image with draws of its own.

Sources: Cubuk et al., "RandAugment", NeurIPS 2020, arXiv:1909.13719; Müller and Hutter, "TrivialAugment", ICCV 2021,
arXiv:2103.10158. Images with the same operation are changed together, so a batch costs a few operations for each kind.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from datamodules.draws import Draws, below
from datamodules.transforms import colour
from datamodules.transforms.geometry import inverse_map, warp

# the names are torchvision's; the geometric ones come last, in the order of `inverse_map`, and are one kind
OPERATIONS = (
    "Identity",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
FIRST_GEOMETRIC = OPERATIONS.index("ShearX")
# whose strength has a sign, drawn apart
SIGNED = frozenset({"Brightness", "Color", "Contrast", "Sharpness", *OPERATIONS[FIRST_GEOMETRIC:]})
BINS = 31

COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda images, strength: colour.brightness(images, 1 + strength),
    "Color": lambda images, strength: colour.saturation(images, 1 + strength),
    "Contrast": lambda images, strength: colour.contrast(images, 1 + strength),
    "Sharpness": lambda images, strength: colour.sharpness(images, 1 + strength),
    "Posterize": lambda images, strength: colour.posterize(images, strength.long()),
    "Solarize": lambda images, strength: colour.solarize(images, 255 * strength),
    "AutoContrast": lambda images, strength: colour.autocontrast(images),
    "Equalize": lambda images, strength: colour.equalize(images),
}


def apply(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Changes each image by its own operation.

    Args:
        images: uint8 (b, c, y, x).
        operation: Place of each image's operation in `OPERATIONS`, int64 (b,).
        strength: Its magnitude in torchvision's units, sign included, float64 (b,).

    Returns:
        Images of the same shape.
    """
    kind = operation.clamp(max=FIRST_GEOMETRIC)
    sizes: list[int] = kind.bincount(minlength=FIRST_GEOMETRIC + 1).tolist()
    # sorted by kind, the images of each lie together: one copy there and one back
    order = kind.argsort()
    result = images.index_select(0, order)
    parts = zip(result.split(sizes), operation[order].split(sizes), strength[order].split(sizes), strict=True)
    for number, (part, which, amount) in enumerate(parts):
        if not len(part) or OPERATIONS[number] == "Identity":
            continue
        if number == FIRST_GEOMETRIC:
            part.copy_(_geometric(part, which, amount))
        else:
            part.copy_(COLOUR[OPERATIONS[number]](part, amount))
    return result.index_select(0, order.argsort())


def _geometric(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    which = torch.arange(FIRST_GEOMETRIC, len(OPERATIONS), device=images.device)
    shear_x, shear_y, right, down, degrees = (strength[:, None] * (operation[:, None] == which)).unbind(1)
    return warp(images, inverse_map(shear_x, shear_y, right.trunc(), down.trunc(), degrees, *images.shape[-2:]))


@lru_cache(maxsize=8)
def strengths(wide: bool, height: int, width: int) -> Tensor:
    """Magnitude of each operation in each bin, in torchvision's units, float64 (operations, bins).

    Args:
        wide: TrivialAugment's ranges, else RandAugment's.
        height: Pixels of an image.
        width: Pixels of an image.
    """
    tint = 0.99 if wide else 0.9
    shear = 0.99 if wide else 0.3
    largest = {
        "Brightness": tint,
        "Color": tint,
        "Contrast": tint,
        "Sharpness": tint,
        "ShearX": shear,
        "ShearY": shear,
        "TranslateX": 32.0 if wide else 150.0 / 331.0 * width,
        "TranslateY": 32.0 if wide else 150.0 / 331.0 * height,
        "Rotate": 135.0 if wide else 30.0,
    }
    # float32 first, as in torchvision, where a pixel more or less may hang on the last bit
    table = {name: torch.linspace(0.0, most, BINS) for name, most in largest.items()}
    table["Posterize"] = (8 - torch.arange(BINS) / ((BINS - 1) / (6 if wide else 4))).round()
    table["Solarize"] = torch.linspace(1.0, 0.0, BINS)
    return torch.stack([table.get(name, torch.zeros(BINS)) for name in OPERATIONS]).double()


class RandAugment:
    """`num_ops` operations one after the other, all of one magnitude.

    Args:
        num_ops: Operations for each image.
        magnitude: Strength of all, a bin from 0 to 30.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        if num_ops < 1:
            raise ValueError(f"num_ops must be at least 1, got {num_ops}")
        if not 0 <= magnitude < BINS:
            raise ValueError(f"magnitude must be in 0 to {BINS - 1}, got {magnitude}")
        self.num_ops = num_ops
        self.magnitude = magnitude

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return _in_turn(images, draws, "randaugment", self.num_ops, False, self.magnitude)


class TrivialAugmentWide:
    """One operation of a magnitude that is drawn as well."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return _in_turn(images, draws, "trivialaugment", 1, True, None)


def _in_turn(images: Tensor, draws: Draws, stream: str, turns: int, wide: bool, magnitude: int | None) -> Tensor:
    """Changes each image by `turns` operations, of one magnitude or of magnitudes of their own."""
    bits = draws.bits(stream, 3 * turns)
    operations = below(bits[:, :turns], len(OPERATIONS))
    bins = below(bits[:, turns : 2 * turns], BINS) if magnitude is None else torch.full_like(operations, magnitude)
    sign = 1 - 2 * below(bits[:, 2 * turns :], 2)
    strength = strengths(wide, *images.shape[-2:]).to(images.device)[operations, bins]
    signed = torch.tensor([name in SIGNED for name in OPERATIONS], device=images.device)[operations]
    strength = torch.where(signed, strength * sign, strength)
    for turn in range(turns):
        images = apply(images, operations[:, turn], strength[:, turn])
    return images

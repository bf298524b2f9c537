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

# the names are torchvision's; the last five are in the order of `inverse_map`
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
BLENDED, GEOMETRIC = OPERATIONS[1:4], OPERATIONS[9:]
# whose strength has a sign, drawn apart
SIGNED = frozenset({*BLENDED, "Sharpness", *GEOMETRIC})
BINS = 31


def _blended(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    to_pixel, to_mean = (operation == OPERATIONS.index(name) for name in ("Color", "Contrast"))
    return colour.blend(images, 1 + strength, to_pixel, to_mean)


def _moved(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    which = torch.tensor([OPERATIONS.index(name) for name in GEOMETRIC], device=images.device)
    shear_x, shear_y, right, down, degrees = (strength[:, None] * (operation[:, None] == which)).unbind(1)
    return warp(images, inverse_map(shear_x, shear_y, right.trunc(), down.trunc(), degrees, *images.shape[-2:]))


Kind = Callable[[Tensor, Tensor, Tensor], Tensor]
# operations that are one kind are done together, since a kind's cost is a dozen small steps
KINDS: tuple[tuple[tuple[str, ...], Kind], ...] = (
    (BLENDED, _blended),
    (GEOMETRIC, _moved),
    (("Sharpness",), lambda images, _, strength: colour.sharpness(images, 1 + strength)),
    (("Posterize",), lambda images, _, strength: colour.posterize(images, strength.long())),
    (("Solarize",), lambda images, _, strength: colour.solarize(images, 255 * strength)),
    (("AutoContrast",), lambda images, *_: colour.autocontrast(images)),
    (("Equalize",), lambda images, *_: colour.equalize(images)),
)
# for each operation its kind; the last one, Identity's, leaves images as they are
KIND_OF = [next((i for i, (names, _) in enumerate(KINDS) if name in names), len(KINDS)) for name in OPERATIONS]


def apply(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Changes each image by its own operation.

    Args:
        images: uint8 (b, c, y, x).
        operation: Place of each image's operation in `OPERATIONS`, int64 (b,).
        strength: Its magnitude in torchvision's units, sign included, float64 (b,).

    Returns:
        Images of the same shape.
    """
    kind = torch.tensor(KIND_OF, device=images.device)[operation]
    sizes: list[int] = kind.bincount(minlength=len(KINDS) + 1).tolist()
    # sorted by kind, the images of each lie together: one copy there and one back
    order = kind.argsort()
    result = images.index_select(0, order)
    parts = zip(result.split(sizes), operation[order].split(sizes), strength[order].split(sizes), strict=True)
    for (_, change), (part, which, amount) in zip(KINDS, parts, strict=False):
        if len(part):
            part.copy_(change(part, which, amount))
    return result.index_select(0, order.argsort())


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

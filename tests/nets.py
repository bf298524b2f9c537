"""Small nets for tests: every named system at sizes that run in milliseconds."""

from typing import Any

import torch
from torch import Tensor

import vix
from vix.backbones import Backbone
from vix.spec import parameters_of

# By body, the last class of this module's that a system descends from.
SIZES: dict[str, dict[str, Any]] = {
    "VisionTransformer": {"dim": 16, "depth": 2, "mlp_dim": 24, "heads": 2, "dim_head": 8},
    "LeViT": {"dim": (16, 24), "depth": 1, "heads": 2, "dim_head": 8},
    "CvT": {"dim": (8, 16), "depth": 1, "heads": (1, 2), "dim_head": 8},
    "CCT": {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8},
}


def tiny(system: type[Backbone], seed: int = 0, **options: Any) -> Backbone:
    """Makes a small net of which no part is asleep: weights that start at zero or one are moved a little."""
    body = next(kind.__name__ for kind in system.__mro__ if kind.__name__ in SIZES)
    allowed = parameters_of(system)
    sizes = {name: size for name, size in SIZES[body].items() if name in allowed}
    torch.manual_seed(seed)
    net = system(**{"image_size": 16, "num_classes": 5, **sizes, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def images(net: Backbone, count: int = 2, seed: int = 0, size: tuple[int, int] | None = None) -> Tensor:
    """Random images of the net's size and channels, in its precision."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, net.channels, *(size or net.image_size), generator=generator, dtype=torch.float64)
    return drawn.to(next(net.parameters()))


def systems_with(argument: str) -> list[str]:
    """Names of the systems that take an argument."""
    return [name for name, system in vix.SYSTEMS.items() if argument in parameters_of(system)]

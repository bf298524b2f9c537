"""What colour and geometry share: values of 8 bits."""

import torch
from torch import Tensor

LEVELS = 256


def to_uint8(values: Tensor) -> Tensor:
    """Floats in 0 to 255 as uint8, rounded down."""
    # by way of 16 bits torch vectorises, directly it does not: three times as fast on a CPU
    return values.to(torch.int16).to(torch.uint8)

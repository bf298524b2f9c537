"""What a net costs, counted rather than timed: parameters, tokens, floating-point operations."""

import math
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vix.backbones import Backbone


def _fft_flops(shape: Any, dims: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Counts 5 N log2 N for a complex transform of N values, as is usual."""
    total = math.prod(shape)
    lengths = math.prod(shape[dim] for dim in dims)
    return round(5 * total * math.log2(lengths)) if lengths > 1 else 0


FLOP_FORMULAS = {
    torch.ops.aten._fft_c2c: _fft_flops,
    torch.ops.aten._fft_r2c: lambda shape, dims, *rest, **options: _fft_flops(shape, dims) // 2,
}


def flops(net: nn.Module, images: torch.Tensor) -> int:
    """Counts the operations of one forward: a multiply-add is two; pointwise work is not counted."""
    training = net.training
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        net.eval()(images)
    net.train(training)
    return counter.get_total_flops()


def parameters(net: nn.Module) -> int:
    """Counts trainable values, positions and class tokens included."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def summary(net: Backbone) -> dict[str, int]:
    """Counts trainable parameters, tokens of an image, and operations of the forward of one image."""
    weight = next(net.parameters())
    image = torch.zeros(1, net.channels, *net.image_size, dtype=weight.dtype, device=weight.device)
    return {"parameters": parameters(net), "tokens": net.tokens.count, "flops": flops(net, image)}

"""What a net costs, counted rather than timed: parameters, tokens, floating-point operations, bytes kept for backward.

A multiply-add is two operations. Counted are matrix products, convolutions, attention, Fourier transforms and singular
values; pointwise work is not.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vix.backbones import Backbone


def _fft_flops(shape: Any, dims: Any) -> int:
    """Counts 5 N log2(n) for a complex transform of N values over lines of n (Cooley and Tukey's radix 2)."""
    lines = math.prod(shape[dim] for dim in dims)
    return round(5 * math.prod(shape) * math.log2(lines))


def _complex_fft(shape: Any, dims: Any, *_: Any, out_shape: Any) -> int:
    return _fft_flops(shape, dims)


def _fft_of_real(shape: Any, dims: Any, *_: Any, out_shape: Any) -> int:
    # Half of the spectrum is the other half's conjugate, so half of the work will do.
    return _fft_flops(shape, dims) // 2


def _fft_to_real(shape: Any, dims: Any, *_: Any, out_shape: Any) -> int:
    return _fft_flops(out_shape, dims) // 2


def _convolution_backward(grad: Any, x: Any, weight: Any, *options: Any, out_shape: Any) -> int:
    """Counts for each of the two gradients what the forward costs; torch's formula forgets the groups of the weight's.

    A bias's gradient is a sum, so it counts nothing.
    """
    transposed, wanted = options[4], options[7]
    # An output (transposed: an input) meets as many weights as one filter has.
    visits = math.prod(x if transposed else grad) * math.prod(weight[1:])
    return 2 * visits * sum(wanted[:2])


def _matrix_vector(matrix: Any, *_: Any, out_shape: Any) -> int:
    return 2 * math.prod(matrix)


def _added_product(_: Any, left: Any, right: Any, *, out_shape: Any, **factors: Any) -> int:
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


def _singular_values(shape: Any, *_: Any, out_shape: Any) -> int:
    # Golub and Van Loan, "Matrix Computations", 4th edition, figure 8.6.1, R-SVD with both bases.
    batch, longer, shorter = math.prod(shape[:-2]), max(shape[-2:]), min(shape[-2:])
    return batch * (6 * longer * shorter**2 + 20 * shorter**3)


aten = torch.ops.aten
FORMULAS = {
    aten._fft_c2c: _complex_fft,
    aten._fft_r2c: _fft_of_real,
    aten._fft_c2r: _fft_to_real,
    aten.convolution_backward: _convolution_backward,
    aten.mv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten._linalg_svd: _singular_values,
    **dict.fromkeys((aten.addmm_, aten.addmv, aten.addmv_, aten.addbmm, aten.addbmm_, aten.baddbmm_), _added_product),
}
"""Operations that torch does not count, or counts wrongly."""


def count_flops(function: Callable[[], object]) -> int:
    """Counts the operations of everything that a call runs, its backward passes included.

    Recomputation counts as often as it is done: fused attention's backward is 2.5 times its forward.
    """
    # Its import takes a quarter of a second, which `bench --help` need not pay.
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        function()
    return counter.get_total_flops()


def flops(net: nn.Module, images: Tensor) -> int:
    """Counts the operations of one forward in evaluation mode; every module's mode is restored."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    with torch.no_grad():
        count = count_flops(lambda: net(images))
    for module, training in modes.items():
        module.training = training
    return count


def bytes_kept(function: Callable[[], object], exclude: Iterable[Tensor] = ()) -> int:
    """Counts the bytes of the distinct storages that a forward keeps for its backward.

    A view counts as the whole storage that it keeps alive, and each storage once. What a custom function keeps other
    than through `save_for_backward` is not seen.

    Args:
        function: The forward; what it returns is held until everything is counted.
        exclude: Tensors that exist anyway, such as the parameters.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    # Holding the storages keeps an address from being given to another.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    count = sum(storage.nbytes() for storage in kept.values())
    del out
    return count


def parameters(net: nn.Module) -> int:
    """Counts trainable values, positions and class tokens included."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def summary(net: Backbone) -> dict[str, int]:
    """Counts trainable parameters, tokens of an image, and operations of the forward of one image."""
    weight = next(net.parameters())
    image = torch.zeros(1, net.channels, *net.image_size, dtype=weight.dtype, device=weight.device)
    return {"parameters": parameters(net), "tokens": net.tokens.count, "flops": flops(net, image)}

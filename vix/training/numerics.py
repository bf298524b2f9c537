"""Where numbers stop being finite: whether a step's are, and which part of the net was the first to lose them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# So many batches in a row may be left out; then it is no accident of a batch.
MOST_SKIPPED = 10


def largest_gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The largest absolute value of all gradients, a scalar on their device; not finite if one of them is not."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    largest = nn.utils.get_total_norm(gradients, norm_type=float("inf"))
    # of a sharded gradient each process sees its own part
    whole: Any = getattr(largest, "full_tensor", None)
    return largest if whole is None else whole()


def first_trouble(net: nn.Module, images: Tensor) -> str:
    """Says where a step first lost its finite numbers: images, weights, a part's output, or a gradient.

    The net is run once more, without being changed or drawing from the generators that training draws from.

    Args:
        net: With the gradients of the step, if there are any.
        images: Of the batch, normalised.
    """
    if not images.isfinite().all():
        return f"image {int((~images.flatten(1).isfinite().all(1)).nonzero()[0])} of the batch has such values already"
    for name, parameter in net.named_parameters():
        if not parameter.isfinite().all():
            return f"net.{name} itself is not finite"
    if found := _first_output(net, images):
        return found
    broken = [
        name
        for name, parameter in net.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    if not broken:
        return "the net's outputs are finite, so it began in the loss"
    more = f" and of {len(broken) - 1} more" if len(broken) > 1 else ""
    # backward goes from the last parameter to the first
    return f"all outputs are finite; first in backward came the gradient of net.{broken[-1]}{more}"


def _first_output(net: nn.Module, images: Tensor) -> str:
    """The first part that gave what is not finite, nothing where all of them are finite."""
    found: list[str] = []

    def watch(name: str, kind: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _finite(output):
                what = "output" if _finite(inputs) else "input"
                found.append(f"first not finite was the {what} of {name} ({kind})")

        return hook

    handles = [
        part.register_forward_hook(watch(f"net.{name}" if name else "net", type(part).__name__))
        for name, part in net.named_modules()
    ]
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            # past a compiled call, which knows nothing of the hooks
            net.forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)

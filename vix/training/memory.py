"""Out of memory: what would have fitted, found by trying."""

import gc
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")
# oneDNN's words for no room, and for a precision that the processor lacks: neither would do as a setting.
NO_PRIMITIVE = "could not create a primitive"


class Batch(Protocol):
    """Normalised images (b, channels, y, x) and their labels."""

    images: Tensor
    labels: Tensor


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory is used up, the device's or the processor's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def release(error: BaseException, device: torch.device) -> None:
    """Gives back what the frames of an error hold."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def what_fits(
    net: nn.Module, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor], device: torch.device, accumulated: int
) -> list[str]:
    """The settings under which a forward and backward pass fits, with as many images a step; none where nothing does.

    Args:
        net: It is moved to the device, and its gradients are dropped.
        batch: The one that did not fit.
        loss: Of logits and labels.
        device: That has too little memory.
        accumulated: Batches of a step as it is.
    """
    net.to(device)
    # an optimiser of Adam's kind keeps two numbers for each weight from the first step on
    kept = [torch.empty_like(parameter) for parameter in net.parameters() for _ in range(2)]

    def fits(images: int, precision: torch.dtype = torch.float32) -> bool:
        try:
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                value = loss(net(batch.images[:images].to(device)), batch.labels[:images].to(device))
            value.backward()
        except (MemoryError, RuntimeError) as error:
            if not is_exhausted(error) and NO_PRIMITIVE not in str(error):
                raise
            release(error, device)
            return False
        finally:
            net.zero_grad(set_to_none=True)
        return True

    found = []
    count = whole = len(batch.images)
    while count > 1:
        count //= 2
        if fits(count):
            steps = accumulated * -(-whole // count)
            found.append(f"--data.batch_size={count} --trainer.accumulate_grad_batches={steps}")
            break
    if fits(whole, torch.bfloat16):
        found.append("--trainer.precision=bf16-mixed")
    switch: Any = getattr(net, "set_grad_checkpointing", None)
    if switch is not None:
        switch()
        if fits(whole):
            found.append("--model.grad_checkpointing=true")
    kept.clear()
    return found

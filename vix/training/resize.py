"""A checkpoint as if its net had been trained on images of another size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vix.spec import build
from vix.training.checkpoint import TRUSTED, Checkpoint
from vix.training.errors import UsageError, first_line

PREFIX = "net."


def resized(checkpoint: Checkpoint, image_size: tuple[int, int], trusted: Sequence[str] = ()) -> Checkpoint:
    """Carries a checkpoint's net over to another size; its data gets that size too, where it has an argument for it.

    Args:
        checkpoint: What was read.
        image_size: Height and width in pixels.
        trusted: Modules whose classes it may name beside ours.

    Raises:
        UsageError: If the net cannot be had for that size.
    """
    spec = checkpoint.model.get("net")
    if spec is None:
        raise UsageError(f"{checkpoint.path}: image_size: its net has no spec, so its images have one size")
    try:
        net: Any = build(spec, trusted=(*TRUSTED, *(f"{module.rstrip('.')}." for module in trusted)))
        if not hasattr(net, "resized"):
            raise ValueError(f"{type(net).__name__} has no resized(), so its images have one size")
        net.load_state_dict({name.removeprefix(PREFIX): value for name, value in checkpoint.weights.items()})
        net = net.resized(image_size)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{checkpoint.path}: image_size: {first_line(error)}") from error
    data = checkpoint.data
    if data is not None and "image_size" in (data.get("init_args") or {}):
        data = {**data, "init_args": {**data["init_args"], "image_size": list(image_size)}}
    return replace(
        checkpoint,
        model={**checkpoint.model, "net": net.spec},
        data=data,
        image_size=image_size,
        weights={f"{PREFIX}{name}": value for name, value in net.state_dict().items()},
    )

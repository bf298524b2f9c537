"""A trained net by the name of its run, for every command that does not train: the net, and what to feed it with."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vix.spec import build
from vix.training.checkpoint import TRUSTED, Checkpoint, read_checkpoint
from vix.training.classifier import refuse_misfit
from vix.training.errors import UsageError, first_line
from vix.training.plan import without
from vix.training.resize import resized
from vix.training.runs import find_checkpoint, run_of

# The training side knows data sets by name only; this one reads files that the user names.
FILES = "datamodules.ImageFiles"


@dataclass(frozen=True)
class Trained:
    """A trained net, ready to be asked.

    Args:
        net: In eval mode, on the CPU, in float32.
        checkpoint: Where it is from, and what is known of its data.
    """

    net: nn.Module
    checkpoint: Checkpoint

    @property
    def folder(self) -> Path:
        """Where a command's files go: the run, or the checkpoint's own folder where it lies in none."""
        run = run_of(self.checkpoint.path)
        return run.folder if run else self.checkpoint.path.parent

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; numbers where the data had no names."""
        count: Any = getattr(self.net, "num_classes", 0)
        return self.checkpoint.class_names or tuple(str(number) for number in range(count))

    @property
    def spec(self) -> dict[str, Any]:
        """What makes the net again."""
        spec: dict[str, Any] = getattr(self.net, "spec", self.checkpoint.model["net"])
        return spec

    @property
    def reading(self) -> dict[str, Any]:
        """How images have to come: image_size, channels, mean and std.

        Raises:
            UsageError: If the checkpoint does not know; one that was trained on a datamodule does.
        """
        size = getattr(self.net, "image_size", self.checkpoint.image_size)
        channels = getattr(self.net, "channels", self.checkpoint.channels)
        mean, std = self.checkpoint.mean, self.checkpoint.std
        if size is None or channels is None or not mean or not std:
            raise UsageError(f"{self.checkpoint.path}: does not say how images are normalised: it was trained on none")
        return {"image_size": tuple(size), "channels": channels, "mean": mean, "std": std}


def load_trained(place: str, *, trusted: Sequence[str] = (), image_size: tuple[int, int] | None = None) -> Trained:
    """Loads the net that `--ckpt_path` means; nothing in the file is executed.

    Args:
        place: A run folder, of which the best epoch is taken, or a checkpoint.
        trusted: Modules whose classes it may name beside ours.
        image_size: Height and width of the images in pixels, where they are of another size than in training; what
            belongs to places is interpolated then.

    Raises:
        UsageError: If there is none, it does not fit, or cannot be had for that size.
    """
    checkpoint = read_checkpoint(find_checkpoint(place, resume=False), trusted=trusted)
    if checkpoint.model.get("net") is None:
        raise UsageError(f"{checkpoint.path}: its net has no spec, so it can be loaded from Python only")
    if image_size is not None:
        checkpoint = resized(checkpoint, image_size, trusted)
    try:
        net = build(checkpoint.model["net"], trusted=(*TRUSTED, *(f"{module.rstrip('.')}." for module in trusted)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{checkpoint.path}: {first_line(error)}") from error
    # of the classifier's state the net has all but a prefix
    weights = {name.removeprefix("net."): tensor for name, tensor in checkpoint.weights.items()}
    refuse_misfit(net, weights)
    net.load_state_dict(weights)
    return Trained(net.float().eval(), checkpoint)


def make_data(spec: Mapping[str, Any], **arguments: Any) -> Any:
    """Makes the datamodule that a spec names, as evaluation needs it; a checkpoint's spec was checked when it was read.

    Args:
        spec: Class path and arguments.
        arguments: Others, which come before those of the spec.
    """
    module, _, name = spec["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**{**without(spec, ("augment",))["init_args"], **arguments})


def image_files(trained: Trained, paths: Sequence[str], **options: Any) -> Any:
    """A reader of the user's files that gives images as the net wants them."""
    return make_data({"class_path": FILES}, paths=paths, **trained.reading, **options)


def sample(trained: Trained, count: int, paths: Sequence[str] = ()) -> Tensor:
    """Some real images (count, c, y, x), normalised: of the files given, else of the run's own data.

    From the data they are validation images, or training images where it has none; fewer than `count` are repeated.

    Raises:
        DataError: If the data is not there.
        UsageError: If the checkpoint names none.
    """
    if paths:
        images = image_files(trained, paths).first(count)
    else:
        data_error = importlib.import_module(FILES.partition(".")[0]).DataError
        try:
            images = _of_the_run(trained.checkpoint, count)
        except data_error as error:
            raise data_error(f"{error}\nOr give a few images of your own: --images FOLDER") from None
    size = trained.reading["image_size"]
    if images.shape[-2:] != size:
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return images[torch.arange(count) % len(images)]


def _of_the_run(checkpoint: Checkpoint, count: int) -> Tensor:
    if checkpoint.data is None:
        raise UsageError(f"{checkpoint.path}: names no data; give a few images: --images FOLDER")
    data = make_data(checkpoint.data, batch_size=count)
    data.setup("validate")
    loader = data.val_dataloader() or data.train_dataloader()
    images: Tensor = data.transform(next(iter(loader)), train=False).images
    return images

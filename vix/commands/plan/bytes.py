"""Counts the bytes that a step would hold, on tensors that have sizes but no values."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vix.backbones import Backbone
from vix.commands.plan.sized import Face, LiveBytes, Sized, Storage

Mode = Literal["train", "infer"]


@dataclass(frozen=True)
class Setting:
    """How a step is run.

    Args:
        mode: A training step, or a forward without gradients.
        bf16: Whether under autocast to bfloat16, Lightning's `bf16-mixed`.
        checkpointing: Whether blocks are computed again in backward.
    """

    mode: Mode = "train"
    bf16: bool = False
    checkpointing: bool = False

    @property
    def label(self) -> str:
        """Its name in a table."""
        words = ("train" if self.mode == "train" else "infer", "bf16" if self.bf16 else "fp32")
        return " ".join((*words, "ckpt") if self.checkpointing else words)


@dataclass(frozen=True)
class Need:
    """The bytes of a step of `batch` images.

    Args:
        batch: The images.
        fixed: What there is between steps: parameters, buffers and, in training, gradients, the optimiser's state, and
            the average of the weights where one is kept.
        held: That, and all that is alive at the end of the forward: the images and what is kept for backward.
        peak: The most that is alive at any moment of forward and backward.
    """

    batch: int
    fixed: int
    held: int
    peak: int

    @property
    def per_image(self) -> float:
        """What another image adds to the peak."""
        return (self.peak - self.fixed) / self.batch


class Planner:
    """Counts the bytes of a net's steps.

    A training step is forward, cross-entropy and backward into gradients that are there already, as in a step that
    accumulates. The optimiser is AdamW, whose own step needs less than any backward.

    Args:
        build: Makes the net.
        average: Whether the weights' average is kept beside them.
    """

    def __init__(self, build: Callable[[], nn.Module], *, average: bool = True) -> None:
        net = build()
        assert isinstance(net, Backbone)
        # built with values, which some ways of drawing weights look at, and copied without
        self.net = copy.deepcopy(
            net, {id(tensor): Sized.like(tensor) for tensor in (*net.parameters(), *net.buffers())}
        )
        self.average = average

    @property
    def parameters(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.net.parameters() if parameter.requires_grad)

    def need(self, batch: int, setting: Setting) -> Need:
        """Counts the bytes of a step of so many images."""
        training = setting.mode == "train"
        net = self.net.train(training)
        net.set_grad_checkpointing(setting.checkpointing)
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = Sized(Face.of(parameter), Storage(parameter.nbytes)) if training else None
        fixed = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
        if training:
            fixed += self._beside(trained)
        live = LiveBytes(fixed)
        with live, torch.set_grad_enabled(training):
            images = torch.zeros(batch, net.channels, *net.image_size)
            labels = torch.zeros(batch, dtype=torch.int64)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.bf16):
                logits = net(images)
                loss = functional.cross_entropy(logits, labels) if training else logits
            held = live.now
            if training:
                loss.backward()
        for parameter in trained:
            parameter.grad = None
        return Need(batch, fixed, held, live.peak)

    def _beside(self, trained: Iterable[Tensor]) -> int:
        """Bytes that lie beside parameters: gradients, AdamW's two moments and step counts, the average."""
        sizes = [parameter.nbytes for parameter in trained]
        return (3 + self.average) * sum(sizes) + 4 * len(sizes)

    def largest(self, memory: int, setting: Setting, *, first: int = 64) -> Need | None:
        """Finds the largest batch whose peak fits.

        Bytes grow with the batch by equal steps, so one count tells all; of smaller batches than the counted one what
        does not grow would be taken for less than it is, so these are counted again.

        Args:
            memory: Bytes that there are.
            setting: How the step is run.
            first: The batch that is counted first.

        Returns:
            Its need, scaled from the batch that was counted; None where not even one image fits.
        """
        batch = first
        while True:
            counted = self.need(batch, setting)
            fits = int((memory - counted.fixed) // counted.per_image)
            if fits < 1 and batch == 1:
                return None
            if fits >= batch:
                return self._scaled(counted, fits)
            batch = max(1, fits)

    @staticmethod
    def _scaled(counted: Need, batch: int) -> Need:
        def scale(size: int) -> int:
            return counted.fixed + round((size - counted.fixed) * batch / counted.batch)

        return Need(batch, counted.fixed, scale(counted.held), scale(counted.peak))

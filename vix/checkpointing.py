"""Activation checkpointing: what a block makes is not kept for backward but computed again from its input.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LEAST_PART = 1 / 6
"""Of all that the blocks of a net keep: the last ones, if they keep less together, are not computed again."""


def worth_recomputing(sizes: Sequence[int]) -> int:
    """Returns how many of the first blocks to compute again, given what each keeps, in any unit.

    Backward begins with the last blocks, when nothing is freed yet, so computing them again saves memory only as far as
    they keep more than the largest block does. Small ones at the end of a pyramid cost time for nothing.
    """
    count, rest = len(sizes), 0
    while count > 1 and rest + sizes[count - 1] <= LEAST_PART * sum(sizes):
        count -= 1
        rest += sizes[count]
    return count


@contextmanager
def _again(module: nn.Module) -> Iterator[None]:
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "recomputing")]
    for part in parts:
        part.recomputing = True
    try:
        yield
    finally:
        for part in parts:
            part.recomputing = False


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _again(module)


def checkpointed(function: Callable[..., Tensor], module: nn.Module, *inputs: Any) -> Tensor:
    """Returns function(*inputs) and keeps only the inputs for backward.

    Args:
        function: What is computed, and computed again.
        module: What does the computing: those of its parts that have an attribute `recomputing` are told by it when
            they run again, so that BatchNorm counts a batch once and a last product need not be made.
        inputs: The arguments.
    """
    # A compiler writes statistics once and leaves out what nobody reads by itself, and takes no other context.
    options: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, module)}
    out: Tensor = checkpoint(function, *inputs, use_reentrant=False, **options)
    return out

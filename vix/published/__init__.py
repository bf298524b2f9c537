"""The original code's weights in our nets, which then compute what the original computes.

`load` takes the arguments and the state dict of a published model. Two kinds of tables are not taken over: those of
rotations, since ours compute them again, and the table of positions that ViTRoPE, ViLRoPE, HybridViTRoPE and
HybridViLRoPE saved though nothing ever read it; these four have (n + 1) * dim parameters fewer here.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vix.backbones import Backbone
from vix.published.keys import translate
from vix.published.originals import ORIGINALS, Original, original

__all__ = ["ORIGINALS", "Original", "load", "original"]


def load(system: str, arguments: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Backbone:
    """Makes the net that a published model is, with its weights.

    It computes as published: an image's logits depend on its batch mates where the original's do (Performer, Nyström).

    Args:
        system: Name of the published model: one of `ORIGINALS`.
        arguments: The arguments of its constructor, by its own names.
        state_dict: Its weights.

    Returns:
        The net in eval mode, in the state dict's dtype.

    Raises:
        ValueError: If the system or an argument is unknown, or a weight is missing, left over or of another shape.
    """
    model = original(system)
    net = model.net(**model.init_args(arguments))
    weights = translate(model, model.complete(arguments), state_dict, net.state_dict())
    dtypes = [value.dtype for value in weights.values() if value.is_floating_point()]
    net.to(functools.reduce(torch.promote_types, dtypes)).load_state_dict(weights)
    return net.eval()

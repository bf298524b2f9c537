"""The original code's weights in our nets, which then compute what the original computes.

`load` takes the arguments and the state dict of a published model, `load_file` a `.pth` file of one. Two kinds of
tables are not taken over: those of rotations, since ours compute them again, and the table of positions that ViTRoPE,
ViLRoPE, HybridViTRoPE and HybridViLRoPE saved though nothing ever read it; these four have (n + 1) * dim parameters
fewer here.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vix.backbones import Backbone
from vix.published.files import PublishedFile, read_file
from vix.published.keys import translate
from vix.published.originals import ORIGINALS, Original, original

__all__ = ["ORIGINALS", "Original", "PublishedFile", "load", "load_file", "original", "read_file"]


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
    init_args = model.init_args(arguments)
    # Without memory at first: a file's shapes are not to be trusted before they fit together.
    with torch.device("meta"):
        ours = model.net(**init_args).state_dict()
    weights = translate(model, model.complete(arguments), state_dict, ours)
    dtypes = [value.dtype for value in weights.values() if value.is_floating_point()]
    net = model.net(**init_args).to(functools.reduce(torch.promote_types, dtypes))
    net.load_state_dict(weights)
    return net.eval()


def load_file(path: str | Path, system: str | None = None, **arguments: Any) -> Backbone:
    """Makes the net of a `.pth` file of the original code, and prints what the file did not tell.

    Args:
        path: The file: a bare state dict, as all files of the original code are.
        system: The published model; left out, the names of the weights tell it.
        arguments: Arguments of its constructor that the file does not tell, as in `read_file`, which returns instead
            of printing what it found.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no published model, an argument does not fit, or one has to be given.
    """
    file = read_file(path, system, **arguments)
    try:
        net = load(file.system, file.arguments, file.state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    assumed = ", ".join(f"{name}={value!r}" for name, value in file.assumed.items())
    # The one thing said aloud: these numbers decide about the logits, and the file cannot vouch for them.
    print(f"{path}: {file.system}; not in the file, so as in the authors' script: {assumed or 'nothing'}")  # noqa: T201
    return net

"""Files of the original code: bare state dicts, from authors or strangers."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vix.published.originals import original
from vix.published.shapes import Reading, recognise


class PublishedFile(NamedTuple):
    """What a file holds: the arguments of `load`, and which of them are not its own.

    Args:
        system: The published model.
        arguments: All arguments of its constructor.
        state_dict: The weights.
        assumed: Those arguments that neither the file nor the caller told, and that matter.
    """

    system: str
    arguments: dict[str, Any]
    state_dict: dict[str, Tensor]
    assumed: dict[str, Any]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a bare state dict, and runs no code that the file may hold.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything but whole tensors by name.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights, or is no file of them: it was not loaded") from error
    # A damaged file can fail anywhere in the reader, with any exception.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:100] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a file of weights: {reason}") from error
    if not isinstance(content, Mapping) or not content:
        what = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {what}, not the state dict of a published model")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} is no bare state dict: {str(key)[:60]!r} is a {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{path} is no bare state dict: {key[:60]!r} is no plain tensor")
        # A few bytes can claim any shape by strides of zero.
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"{path} is damaged: {key[:60]!r} claims {tuple(value.shape)} and does not hold it")
    return dict(content)


def read_file(path: str | Path, system: str | None = None, **arguments: Any) -> PublishedFile:
    """Reads a `.pth` file of the original code and finds out the arguments of its model.

    Args:
        path: The file: a bare state dict.
        system: The published model; left out, the names of the weights tell it.
        arguments: Arguments of its constructor, by its own names, that the file does not tell. What is neither told nor
            given takes the value of the author's script: `heads` in ViT and ViL without RoPE (unless ViL has one
            key/value head) and `num_heads` in CCT, `num_landmarks`, strides, `pool`, dropouts. Images are taken to be
            square and to have three channels where that fits; with RoPE, where ViP and ViN hold no positions,
            `image_size` is 32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no published model, an argument does not fit, or one has to be given.
    """
    weights = read_weights(path)
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    try:
        found = recognise(shapes)
        # The package's FNet2D has the same names of weights as the script's.
        if system is not None and system != found and (found, original(system).base) != ("FNet2D", "FNet2D"):
            raise ValueError(f"its weights are those of {found}, not of {system}")
        model = original(system or found)
        reading = Reading(model, shapes, arguments)
        complete = reading.arguments
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    assumed = {name: value for name, value in reading.assumed.items() if name not in model.ignored}
    return PublishedFile(model.system, complete, weights, assumed)

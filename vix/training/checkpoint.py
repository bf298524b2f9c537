"""Checkpoints as files that a stranger may have made: what we keep in them, and how they are read safely.

Beside Lightning's own keys a checkpoint of ours has `hyper_parameters`, the classifier's arguments with the net, the
optimiser and the schedule as specs (`class_path`, `init_args`), and `vix`, which describes the data. Both hold plain
types only, so that `torch.load(weights_only=True)` reads them, and every command can work from the checkpoint alone.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from vix.training.errors import UsageError, first_line

FORMAT = 1
# What a checkpoint may name without being asked: importing a module runs it.
TRUSTED = ("vix.", "datamodules.", "torch.optim.")
# A datamodule's free texts; everywhere else in a spec a dotted or path-like word could be taken for a thing to import.
FREE_TEXT = frozenset({"root", "cache", "mirror"})
PLAIN_WORD = re.compile(r"[A-Za-z0-9_+-]*")
FOLDER_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")
# A net compiled by wrapping has this in all its names.
COMPILED = "_orig_mod."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found harmless.

    Args:
        path: The file.
        model: The classifier's arguments; `net`, `optimizer`, `schedule` as specs.
        data: The datamodule's spec; None where the net was trained from Python on one that has none.
        experiment: Name of the experiment, None likewise.
        class_names: One name a class.
        mean: Per channel, on the 0 to 1 scale.
        std: Per channel, on the 0 to 1 scale.
        image_size: (y, x) in pixels.
        channels: Of an image.
        epoch: The epoch in which it was written, counted from 1.
        step: Optimiser steps taken when it was written.
        weights: The classifier's state, all on the CPU.
    """

    path: Path
    model: dict[str, Any]
    data: dict[str, Any] | None
    experiment: str | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None
    channels: int | None
    epoch: int
    step: int
    weights: dict[str, Tensor]


def read_checkpoint(path: str | Path, *, trusted: Sequence[str] = ()) -> Checkpoint:
    """Reads a checkpoint; nothing in it is executed, and nothing it names is imported.

    Args:
        path: The file.
        trusted: Modules that it may name beside `vix`, `datamodules` and `torch.optim`.

    Raises:
        UsageError: If it is no checkpoint of ours, or names a class of another module.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # what torch did not write is refused anyway
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except UnpicklingError as error:
        # torch's own message advises to load it all the same
        raise UsageError(f"{path}: refused, it is no checkpoint or holds more than weights and plain values") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: not a readable checkpoint ({first_line(error)})") from error
    model, about = (content.get(key) if isinstance(content, dict) else None for key in ("hyper_parameters", "vix"))
    if not isinstance(model, dict) or not isinstance(about, dict) or not isinstance(content.get("state_dict"), dict):
        raise UsageError(f"{path}: not a checkpoint of this project; `main.py fit` writes such ones")
    if about.get("format") != FORMAT:
        raise UsageError(f"{path}: its format is {about.get('format')!r}, this version reads {FORMAT}")
    prefixes = (*TRUSTED, *(f"{module.rstrip('.')}." for module in trusted))
    for problem in _problems(model, about, prefixes):
        raise UsageError(f"{path}: {problem}")
    return Checkpoint(
        path=path,
        model=model,
        data=about.get("data"),
        experiment=about.get("experiment"),
        class_names=tuple(about.get("class_names") or ()),
        mean=tuple(about.get("mean") or ()),
        std=tuple(about.get("std") or ()),
        image_size=tuple(about["image_size"]) if about.get("image_size") else None,
        channels=about.get("channels"),
        epoch=content.get("epoch", 0) + 1,
        step=content.get("global_step", 0),
        weights={name.replace(COMPILED, ""): tensor for name, tensor in content["state_dict"].items()},
    )


def describe_data(datamodule: Any) -> dict[str, Any]:
    """What a checkpoint keeps of a datamodule, plain types; attributes that it lacks are left out."""
    about: dict[str, Any] = {"format": FORMAT}
    for name in ("class_names", "mean", "std", "image_size"):
        if (value := getattr(datamodule, name, None)) is not None:
            about[name] = list(value)
    for name in ("channels", "num_classes"):
        if (number := getattr(datamodule, name, None)) is not None:
            about[name] = int(number)
    return about


def _problems(model: Mapping[str, Any], about: Mapping[str, Any], prefixes: tuple[str, ...]) -> Iterator[str]:
    """Whatever in the specs could make us import or open something unasked."""
    for key, spec in {"net": model.get("net"), "optimizer": model.get("optimizer"), "data": about.get("data")}.items():
        if spec is not None and not _is_spec(spec):
            yield f"its {key} is no spec with a class_path"
    if model.get("schedule") is not None and not _is_spec(model["schedule"]):
        yield "its schedule is no spec with a class_path"
    experiment = about.get("experiment")
    if experiment is not None and not (isinstance(experiment, str) and FOLDER_NAME.fullmatch(experiment)):
        yield f"its experiment {experiment!r} is no name"
    for where, text in (*_texts(model, ("model",)), *_texts(about.get("data"), ("data",))):
        key = where[-1]
        if key == "class_path":
            if not text.startswith(prefixes):
                module = text.rpartition(".")[0] or text
                yield (
                    f"it names {text}, and importing that would run code that this project does not know."
                    f"\nIf you trust it, add --trust {module}"
                )
        elif not (key in FREE_TEXT and where == ("data", "init_args", key)) and not PLAIN_WORD.fullmatch(text):
            yield f"its {'.'.join(where)} is {text!r}, which is no plain word"


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_path"), str)


def _texts(value: Any, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """All strings in a nest of mappings and sequences with the keys that lead there; keys count as texts too."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield (*where, "key"), str(key)
            yield from _texts(item, (*where, str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, where)

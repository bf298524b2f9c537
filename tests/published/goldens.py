"""Weights, inputs and logits of the published models, as the original code gave them.

Source: pranavphoenix/VisionXformer at 7ee52ee (MIT licence), and the PyPI package vision_xformer 0.2.0 (`pip_*`).
Every JSON in golden/ holds one model: its name, the arguments of its constructor, the shapes of its state dict, and
the float64 logits of a batch and of its first image alone. Weights are not stored but drawn from a frozen stream.
"""

import functools
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


class Golden(NamedTuple):
    system: str
    arguments: dict[str, Any]
    parameters: int
    state: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    first_image_alone: Tensor


def draw(key: str, shape: list[int], seed: int) -> Tensor:
    """One weight; the rules are tried in this order."""
    x = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape)
    last = key.rpartition(".")[2]
    if key.endswith("projection_matrix"):
        value = x
    elif key.endswith("running_mean"):
        value = 0.1 * x
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(x)
    elif key.endswith((".bias", ".b")):
        value = 0.1 * x
    elif key.endswith(".g") or (key.endswith("weight") and len(shape) == 1):
        value = 1 + 0.1 * x
    elif last in ("pos_embedding", "cls_token", "positional_emb"):
        value = 0.5 * x
    else:
        value = x / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value))


def constant(key: str, shape: list[int]) -> Tensor:
    """What the original's constructor put there: a table of rotations, which we do not use, or a counter at zero."""
    return torch.zeros(shape, dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float32)


def state_of(shapes: dict[str, list[int]], constants: list[str], seed: int) -> dict[str, Tensor]:
    return {key: constant(key, s) if key in constants else draw(key, s, seed) for key, s in shapes.items()}


@functools.cache
def golden(system: str) -> Golden:
    stored = json.loads((FOLDER / f"{system}.json").read_text(encoding="utf-8"))
    seed = stored["seed"]
    return Golden(
        system=stored["system"],
        arguments=stored["arguments"],
        parameters=stored["parameters"],
        state=state_of(stored["state"], stored["constant"], seed),
        images=torch.from_numpy(np.random.RandomState(seed).standard_normal(stored["input_shape"])),
        logits=torch.tensor(stored["logits"], dtype=torch.float64),
        first_image_alone=torch.tensor(stored["logits_first_image_alone"], dtype=torch.float64),
    )


GOLDENS = sorted(path.stem for path in FOLDER.glob("*.json"))

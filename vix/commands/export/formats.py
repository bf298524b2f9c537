"""The formats of an export: how each is written, and how it is read again to be compared.

Every file takes a batch of any size, normalised images (b, channels, height, width) in float32, and gives logits
(b, classes). What a user needs beside the weights travels in it as text, one JSON value for each name: `class_names`,
`mean`, `std`, `image_size`, `channels`, `net` and more.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vix.spec import build

Facts = Mapping[str, str]
Predictor = Callable[[Tensor], Tensor]
Trusted = tuple[str, ...]
EXTRA = "vix.json"
INPUT, OUTPUT = "images", "logits"


def write_onnx(net: nn.Module, images: Tensor, path: Path, facts: Facts) -> None:
    """Writes an ONNX graph; the facts are its metadata."""
    with _quiet():
        # Any example will do but a batch of one, which would be taken for a constant.
        program = torch.onnx.export(
            net,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None, "only without dynamo is there none"
    program.model.metadata_props.update(facts)
    program.save(path, external_data=False)


def read_onnx(path: Path, trusted: Trusted = ()) -> tuple[Predictor, Facts]:
    """Opens it in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return predict, session.get_modelmeta().custom_metadata_map


def write_torch_export(net: nn.Module, images: Tensor, path: Path, facts: Facts) -> None:
    """Writes a program of `torch.export`; the facts are its extra file `vix.json`."""
    with _quiet():
        program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path, extra_files={EXTRA: json.dumps(facts)})


def read_torch_export(path: Path, trusted: Trusted = ()) -> tuple[Predictor, Facts]:
    """Loads it; it needs torch alone."""
    extra = {EXTRA: ""}
    with _quiet():
        predict: Predictor = torch.export.load(path, extra_files=extra).module()
    return predict, json.loads(extra[EXTRA])


def write_safetensors(net: nn.Module, images: Tensor, path: Path, facts: Facts) -> None:
    """Writes the weights; the facts are the header's metadata, of which `net` makes the net again."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path, dict(facts))


def read_safetensors(path: Path, trusted: Trusted = ()) -> tuple[Predictor, Facts]:
    """Makes the net that the file describes, in eval mode, with its weights.

    Args:
        path: The file.
        trusted: Beginnings of the class paths that it may name beside `vix.`.

    Raises:
        ValueError: If it names another class.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        facts: dict[str, str] = file.metadata()
        net = build(json.loads(facts["net"]), trusted=("vix.", *trusted))
        net.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # it is no mapping
    return net.eval(), facts


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        suffix: How its files end.
        write: Writes a net, traced on some images, with facts.
        read: Gives the net, as a function of images, and the facts.
        needs: The packages beside torch.
    """

    suffix: str
    write: Callable[[nn.Module, Tensor, Path, Facts], None]
    read: Callable[[Path, Trusted], tuple[Predictor, Facts]]
    needs: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(".onnx", write_onnx, read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch_export": Format(".pt2", write_torch_export, read_torch_export),
    "safetensors": Format(".safetensors", write_safetensors, read_safetensors, ("safetensors",)),
}


@torch.no_grad()
def difference(predict: Predictor, net: nn.Module, images: Tensor, batches: tuple[int, ...] = (1, 3, 17)) -> float:
    """Returns the largest difference of two nets' logits over batches of several sizes.

    It is a part of the largest logit where that is above 1.

    Args:
        predict: The one.
        net: The other.
        images: As many as the largest batch (b c y x), normalised.
        batches: The sizes.
    """
    worst = []
    for count in batches:
        expected = net(images[:count])
        worst.append((predict(images[:count]) - expected).abs().max() / expected.abs().max().clamp(min=1))
    # unlike Python's, torch's maximum is no number where one of them is none
    return torch.stack(worst).max().item()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from the user what the exporters say of themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def facts_of(**facts: Any) -> dict[str, str]:
    """Writes each fact as JSON."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}

"""A run folder for a net that was trained elsewhere: weights and what is known of its data, no training to go on."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from vix.measure import summary
from vix.training.callbacks.record import commit, versions
from vix.training.checkpoint import describe_data
from vix.training.classifier import ImageClassifier
from vix.training.errors import UsageError, first_line
from vix.training.files import write_json, write_text
from vix.training.plan import LINKED, without
from vix.training.runs import Run
from vix.training.trained import make_data


def write_run(run: Run, net: nn.Module, data: Mapping[str, Any] | None, *, imported: Mapping[str, Any]) -> bool:
    """Writes config.yaml, checkpoints/last.ckpt and results.json.

    Args:
        run: Where.
        net: The net; it has a `spec`.
        data: Spec of the datamodule that it was trained on, None where none is known.
        imported: Where the weights are from, for results.json.

    Returns:
        Whether the checkpoint knows its data.

    Raises:
        UsageError: If the data cannot be made, or has other classes or images than the net.
    """
    module = ImageClassifier(net)
    about: dict[str, Any] = {"format": 1}
    if data is not None:
        about = {**_described(data, net), "data": dict(data)}
    checkpoint = {
        "pytorch-lightning_version": version("pytorch-lightning"),
        # an epoch before the first
        "epoch": -1,
        "global_step": 0,
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "vix": {**about, "experiment": run.experiment},
    }
    run.last.parent.mkdir(parents=True)
    part = run.last.with_name(f".{run.last.name}.part")
    torch.save(checkpoint, part)
    part.replace(run.last)
    model = {**module.hparams, "net": without(module.hparams["net"], LINKED)}
    config = {"seed_everything": 0, "model": model, **({} if data is None else {"data": dict(data)})}
    head = f"# {run.experiment}: {imported['system']} from {imported['file']}; its weights were trained elsewhere\n"
    write_text(run.config, head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    results = {
        "experiment": run.experiment,
        "run": run.id,
        # no training of ours, so nothing for `report`
        "finished": False,
        "imported": imported,
        **summary(net),  # type: ignore[arg-type]  # published models are nets of ours
        "net": module.hparams["net"],
        "data": dict(data) if data is not None else None,
        "written": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "versions": versions(),
        **commit(Path(__file__)),
    }
    write_json(run.results, results)
    return data is not None


def _described(data: Mapping[str, Any], net: nn.Module) -> dict[str, Any]:
    """What a checkpoint keeps of the data, which must be data for this net."""
    try:
        about = describe_data(make_data(data))
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise UsageError(f"data: {data['class_path']}: {first_line(error)}") from error
    for name in LINKED:
        has, wants = about.get(name), getattr(net, name)
        if has != (list(wants) if isinstance(wants, tuple) else wants):
            raise UsageError(f"data: {data['class_path']} has {name} {has}, but the net was made for {wants}")
    return about

"""From what the user typed to what the parser gets: defaults, then a checkpoint's own settings, then the user's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vix.training.checkpoint import Checkpoint, read_checkpoint
from vix.training.errors import UsageError
from vix.training.resize import resized
from vix.training.runs import Run, find_checkpoint, new_run, run_of
from vix.training.sources import CommandLine

# What the data says of a net's place; the parser links these.
LINKED = ("num_classes", "image_size", "channels")
GROUPS = ("model", "trainer", "wandb")
OWN = ("ckpt_path", "trust", "seeds", "find", "image_size")


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        line: What the user typed.
        arguments: What the parser gets.
        checkpoint: What to start from, None for a fresh training.
        run: Where files go: the checkpoint's run, or a new one where it lies in none.
        fresh: Whether the run is new.
    """

    line: CommandLine
    arguments: tuple[str, ...]
    checkpoint: Checkpoint | None
    run: Run
    fresh: bool


def make_plan(line: CommandLine, *, defaults: Path) -> Plan:
    """Reads the checkpoint and puts together what the parser gets.

    Args:
        line: What the user typed, read with the options `OWN` taken out.
        defaults: The recipe, which comes before everything else.

    Raises:
        UsageError: If a file is missing or not what it should be.
    """
    for setting in line.settings:
        if setting.key in GROUPS and not isinstance(setting.value, dict):
            raise UsageError(f"{setting.source}: {setting.key}: expected a mapping, got {setting.value}")
    first = ["--config", str(defaults)]
    place = line.own.get("ckpt_path")
    if place is None:
        if line.command != "fit" and not {"-h", "--help"} & set(line.arguments):
            raise UsageError(f"{line.command} needs --ckpt_path with a run folder or a checkpoint")
        run = new_run(_experiment(line), _root(line))
        return Plan(line, (line.command, *first, *line.arguments), None, run, fresh=True)
    path = find_checkpoint(place, resume=line.command == "fit")
    trusted = [module for module in line.own.get("trust", "").split(",") if module]
    checkpoint, home = read_checkpoint(path, trusted=trusted), run_of(path)
    if "image_size" in line.own:
        checkpoint = resized(checkpoint, _sides(line), trusted)
    if home is not None and line.command == "fit":
        # what the checkpoint does not know: trainer and logger
        first += ["--config", str(home.config)]
    settings = json.dumps(_settings(checkpoint, line))
    parsed = (line.command, *first, "--config", settings, *line.arguments, "--ckpt_path", str(path))
    run = home or new_run(checkpoint.experiment or _experiment(line), _root(line))
    return Plan(line, parsed, checkpoint, run, fresh=home is None)


def _sides(line: CommandLine) -> tuple[int, int]:
    """The image size that the user gave: 64, or 64x48."""
    given = line.own["image_size"]
    if line.command == "fit":
        raise UsageError(
            f"--image_size {given}: for validate, test, predict and export; fit has its size from the data"
        )
    sides = given.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(f"--image_size {given}: must be a side or HEIGHTxWIDTH in pixels, such as 64 or 64x48")
    return int(sides[0]), int(sides[-1])


def _root(line: CommandLine) -> Path:
    given = line.find("runs")
    return Path(str(given.value) if given else "runs")


def _settings(checkpoint: Checkpoint, line: CommandLine) -> dict[str, Any]:
    """A checkpoint's own settings as a configuration, without what the parser links."""
    model = dict(checkpoint.model)
    if model["net"] is None and line.find("model.net.class_path") is None and line.find("model.net") is None:
        raise UsageError(f"{checkpoint.path}: its net has no spec; give the YAML of the net with --config")
    settings: dict[str, Any] = {"model": {key: value for key, value in model.items() if value is not None}}
    if model["net"] is not None:
        settings["model"]["net"] = without(model["net"], LINKED)
    if checkpoint.data is not None:
        settings["data"] = without(checkpoint.data, ("seed",))
        seed = (checkpoint.data.get("init_args") or {}).get("seed")
        if isinstance(seed, int):
            settings["seed_everything"] = seed
    return settings


def without(spec: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A spec without some of its arguments."""
    arguments = spec.get("init_args") or {}
    return {**spec, "init_args": {key: value for key, value in arguments.items() if key not in names}}


def overlays(line: CommandLine) -> list[str]:
    """Names of the configuration files beside the one that names the net, in order."""
    return [path.stem for path in line.configs if path != _naming(line)]


def _naming(line: CommandLine) -> Path | None:
    """The first configuration file that names a net."""
    keys = ("model.net.class_path", "model.net")
    sources = (Path(setting.source) for setting in line.settings if setting.key in keys)
    return next((source for source in sources if source in line.configs), None)


def _experiment(line: CommandLine) -> str:
    """Name of the file that names the net; a run's own config.yaml stands for that run's experiment."""
    path = _naming(line)
    if path is None:
        given = line.find("model.net.class_path") or line.find("model.net")
        return str(given.value).rpartition(".")[2].lower() if given else "experiment"
    if path.name == "config.yaml" and (path.parent / "results.json").is_file():
        return path.absolute().parent.parent.name
    folder = path.absolute().parent
    # experiments/published/vit.yaml is another experiment than experiments/vit.yaml
    return f"{folder.name}_{path.stem}" if folder.parent.name == "experiments" else path.stem

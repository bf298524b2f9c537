"""From what the user typed to what the parser gets: defaults, then a checkpoint's own settings, then the user's."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vix.training.checkpoint import Checkpoint, read_checkpoint
from vix.training.console import say
from vix.training.errors import UsageError
from vix.training.processes import is_first
from vix.training.resize import resized
from vix.training.runs import Run, find_checkpoint, new_run, run_of, unfinished_run
from vix.training.sources import CommandLine

# What the data says of a net's place; the parser links these.
LINKED = ("num_classes", "image_size", "channels")
GROUPS = ("model", "trainer", "wandb")
OWN = ("ckpt_path", "resume", "trust", "seeds", "find", "image_size")
# Says where and how a run is kept, so that the same training may be asked for with others.
NOT_ASKED = ("runs", "wandb", "save_every")


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        line: What the user typed.
        arguments: What the parser gets.
        checkpoint: What to start from, None for a fresh training.
        run: Where files go: the checkpoint's run, or a new one where it lies in none.
        fresh: Whether the run is new.
        asked: Identifies the settings that were given; `--resume auto` looks for it.
    """

    line: CommandLine
    arguments: tuple[str, ...]
    checkpoint: Checkpoint | None
    run: Run
    fresh: bool
    asked: str


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
    place, given = line.own.get("ckpt_path") or _to_resume(line), asked(line)
    if place is None:
        if line.command != "fit" and not {"-h", "--help"} & set(line.arguments):
            raise UsageError(f"{line.command} needs --ckpt_path with a run folder or a checkpoint")
        run = new_run(_experiment(line), _root(line))
        return Plan(line, (line.command, *first, *line.arguments), None, run, fresh=True, asked=given)
    trusted = [module for module in line.own.get("trust", "").split(",") if module]
    checkpoint = _read(place, resume=line.command == "fit", trusted=trusted)
    path, home = checkpoint.path, run_of(checkpoint.path)
    if "image_size" in line.own:
        checkpoint = resized(checkpoint, _sides(line), trusted)
    if home is not None and line.command == "fit":
        # what the checkpoint does not know: trainer and logger
        first += ["--config", str(home.config)]
    settings = json.dumps(_settings(checkpoint, line))
    parsed = (line.command, *first, "--config", settings, *line.arguments, "--ckpt_path", str(path))
    run = home or new_run(checkpoint.experiment or _experiment(line), _root(line))
    return Plan(line, parsed, checkpoint, run, fresh=home is None, asked=given)


def asked(line: CommandLine) -> str:
    """Eight characters that two commands share which ask for the same training, seed included."""
    settings = [(setting.key, setting.value) for setting in line.settings if setting.key.split(".")[0] not in NOT_ASKED]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _to_resume(line: CommandLine) -> str | None:
    """The run folder that `--resume auto` finds; a job that SLURM queued again need not be told."""
    how = line.own.get("resume")
    if how is None and not (line.command == "fit" and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"):
        return None
    if line.command != "fit" or how not in ("auto", None):
        raise UsageError(f"--resume {how}: fit resumes with --resume auto, or with --ckpt_path and a run folder")
    run = unfinished_run(_experiment(line), _root(line), asked(line))
    if run is None and is_first():
        say(f"no unfinished run of this command in {_root(line) / _experiment(line)}: starting a new one")
    return None if run is None else str(run.folder)


def _read(place: str, *, resume: bool, trusted: Sequence[str]) -> Checkpoint:
    """The checkpoint that is meant; to resume, the best epoch's where the last one is damaged."""
    path = find_checkpoint(place, resume=resume)
    try:
        return read_checkpoint(path, trusted=trusted)
    except UsageError as error:
        other = Run(Path(place)).best
        if not resume or Path(place).is_file() or not other.is_file():
            raise
        checkpoint = read_checkpoint(other, trusted=trusted)
        if is_first():
            say(f"{error}; going on from {other}")
        return checkpoint


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

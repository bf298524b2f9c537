"""Sweeps as shipped: `fit` knows every key and value, and what an agent would start runs and is recorded."""

import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import main
from tests.training import wandb_file

ROOT = Path(main.__file__).parent
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
METRICS = {"val/top1", "val/loss"}


def read(path: Path) -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return sweep


def candidates(parameter: dict[str, Any]) -> list[Any]:
    """What a parameter can become: all its values, or the ends of its range."""
    return list(parameter.get("values") or [parameter[end] for end in ("value", "min", "max") if end in parameter])


def draws(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As few draws as it takes to have every value of every parameter once."""
    names = list(sweep["parameters"])
    values = [candidates(parameter) for parameter in sweep["parameters"].values()]
    for drawn in zip_longest(*values):
        yield {
            name: first[0] if value is None else value for name, value, first in zip(names, drawn, values, strict=True)
        }


def command(sweep: dict[str, Any], draw: dict[str, Any], interpreter: str = sys.executable) -> list[str]:
    """The command line that W&B's agent makes of a draw, by W&B's own functions."""
    expanded = create_sweep_command_args({"args": {name: {"value": value} for name, value in draw.items()}})
    given = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [interpreter],
        "${program}": [sweep["program"]],
        "${args}": expanded["args"],
    }
    line: list[str] = []
    for part in create_sweep_command(list(sweep["command"])):
        line += given.get(part, [part])
    return line


def parsed(line: list[str]) -> int:
    """The exit code of reading a command's options without training anything."""
    return main.main([*line[line.index("main.py") + 1 :], "--print_config"])


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    # a sweep names its files as they are seen from the clone
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_key_and_value_is_one_that_fit_knows(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = read(path)
    for draw in draws(sweep):
        assert parsed(command(sweep, draw)) == 0, capsys.readouterr().err
        shown = yaml.safe_load(capsys.readouterr().out)
        for name, value in draw.items():
            if name != "config":
                assert found(shown, name) == value, name


def found(config: Any, key: str) -> Any:
    """The value of a dotted key, with or without the levels that short options leave out."""
    for name in key.split("."):
        config = config[name] if name in config else config["init_args"][name]
    return config


@pytest.mark.parametrize(
    "wrong", [{"model.optimizer.lrr": 0.1}, {"model.net.num_landmark": 3}, {"trainer.epochs": 3}, {"config": "no.yaml"}]
)
def test_a_wrong_key_would_be_seen(wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(command(read(ROOT / "experiments" / "sweeps" / "landmarks.yaml"), wrong)) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_asks_for_a_score_that_is_logged_and_for_nothing_that_wandb_does_not_know(path: Path) -> None:
    sweep = read(path)
    known = {"program", "project", "method", "metric", "command", "parameters", "early_terminate", "run_cap"}
    assert set(sweep) <= known
    assert sweep["metric"]["name"] in METRICS
    assert sweep["metric"]["goal"] == ("minimize" if sweep["metric"]["name"].endswith("loss") else "maximize")
    assert sweep["method"] in {"grid", "random", "bayes"}
    if sweep["method"] == "grid":
        assert all("values" in parameter for parameter in sweep["parameters"].values())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"].count("${args}") == 1


@pytest.mark.slow
def test_what_an_agent_starts_runs_and_is_the_run_that_the_agent_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read(ROOT / "experiments" / "sweeps" / "systems.yaml")
    sizes = ["dim=16", "depth=1", "heads=2", "dim_head=4", "mlp_dim=8", "patch_size=4"]
    quick = ["--data.fraction=0.1", "--trainer.max_epochs=1", f"--runs={tmp_path / 'runs'}"]
    line = command(sweep, next(draws(sweep))) + [f"--model.net.{size}" for size in sizes] + quick
    # what wandb's agent sets for a run of its sweep
    agent = {"WANDB_SWEEP_ID": "s1w2e3", "WANDB_RUN_ID": "a1b2c3d4", "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    for name, value in agent.items():
        monkeypatch.setenv(name, value)
    # the interpreter that an agent would start for it is this one, in which W&B knows nothing yet
    wandb.teardown()
    assert main.main(line[line.index("main.py") + 1 :]) == 0
    folder = tmp_path / "runs" / "vit" / "a1b2c3d4"
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    run = wandb_file.run(file)
    assert (run.run_id, run.sweep_id, run.display_name) == ("a1b2c3d4", "s1w2e3", "vit")
    assert sweep["metric"]["name"] in set().union(*wandb_file.history(file))

"""Weights & Biases in trouble: training goes on, nothing is lost locally, and one line says how to sync later."""

import csv
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

import main
from tests.training import wandb_file
from tests.training.wandb_server import WandbServer, serving, silent
from vix.training import ImageClassifier
from vix.training.callbacks import WandbRecord

EXPERIMENTS = Path(main.__file__).parent / "experiments"
SMALL = [f"--model.net.{name}={size}" for name, size in {"dim": 16, "depth": 1, "heads": 2, "dim_head": 4}.items()]
EPOCHS = 4
COMMAND = [
    "fit",
    *("--config", str(EXPERIMENTS / "vit.yaml"), "--config", str(EXPERIMENTS / "overlays" / "digits.yaml")),
    *SMALL,
    *(f"--trainer.max_epochs={EPOCHS}", "--data.fraction=0.05", "--trainer.log_every_n_steps=1"),
]
HINT = re.compile(r"wandb (sync (?:--\S+ )?(\S+))$", re.MULTILINE)


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with serving() as made:
        yield made


@pytest.fixture(autouse=True)
def _wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    # no limits that a busy machine could reach
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "90")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "90")
    # an error report to W&B's makers
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    # tables and pictures go by a part of the protocol that the server here does not speak
    monkeypatch.setattr(WandbRecord, "on_train_end", lambda *_: None)
    # its process and its settings, key and address among them, outlive a run, one of an earlier test too
    wandb.teardown()
    yield
    wandb.teardown()
    # W&B does not wait for a process of its own that has died
    for thing in gc.get_objects():
        if type(thing) is subprocess.Popen:
            thing.kill()
            thing.wait()


def train(address: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trains, and gives the run's folder, in which everything of ours must be."""
    monkeypatch.setenv("WANDB_BASE_URL", address)
    assert main.main(COMMAND) == 0
    (folder,) = Path("runs/vit").iterdir()
    assert json.loads((folder / "results.json").read_text())["finished"] is True
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["val/top1"]] == [str(epoch + 1) for epoch in range(EPOCHS)]
    return folder


def hinted(printed: str) -> list[Path]:
    """Where the only hint in the output leads to."""
    ((_, pattern),) = HINT.findall(printed)
    return list(Path().glob(pattern))


def losses(history: list[dict[str, Any]]) -> int:
    return sum("train/loss_step" in row for row in history)


def written(file: Path) -> int:
    """Losses in W&B's own file."""
    return losses(wandb_file.history(file))


def in_epoch_two(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(module: ImageClassifier) -> None:
        if module.current_epoch == 2:
            fault()

    monkeypatch.setattr(ImageClassifier, "on_train_epoch_start", strike)


@pytest.mark.slow
def test_a_healthy_server_gets_everything_and_no_hint_is_given(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(server.address, monkeypatch)
    printed = capsys.readouterr()
    assert "wandb" not in printed.out + printed.err
    (file,) = folder.glob("wandb/run-*/*.wandb")
    assert losses(server.history) == written(file) > EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no key", "half a key", "wrong key", "refuses", "failing", "silent"])
def test_what_fails_at_the_start_makes_the_run_an_offline_one(
    fault: str, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "10")
    with silent() as address:
        if fault == "no key":
            monkeypatch.delenv("WANDB_API_KEY")
        elif fault == "half a key":
            monkeypatch.setenv("WANDB_API_KEY", "k" * 12)
        server.fault = {"wrong key": "unauthorized"}.get(fault, fault)
        if fault == "refuses":
            server.die()
        folder = train(address if fault == "silent" else server.address, monkeypatch)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    (run,) = hinted(printed.out)
    assert [path.name for path in (folder / "wandb").glob("*run-*")] == [run.name]
    (file,) = run.glob("*.wandb")
    assert written(file) > EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dies", "failing", "forbidden"])
def test_a_server_that_goes_away_in_mid_run_gets_the_rest_by_the_command_that_is_said(
    fault: str, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    in_epoch_two(server.die if fault == "dies" else lambda: setattr(server, "fault", fault), monkeypatch)
    train(server.address, monkeypatch)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "W&B has not all of this run" in printed.out
    (run,) = hinted(printed.out)
    (file,) = run.glob("*.wandb")
    whole = written(file)
    assert losses(server.history) < whole
    with serving() as healthy:
        monkeypatch.setenv("WANDB_BASE_URL", healthy.address)
        ((command, _),) = HINT.findall(printed.out)
        sync = [sys.executable, "-m", "wandb", *command.split()]
        done = subprocess.run(sync, capture_output=True, text=True, timeout=120, check=False)
        assert losses(healthy.history) == whole, done.stdout + done.stderr


def core_of_this_process() -> int:
    """The process that W&B started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().rpartition(")")
        if "wandb-core" in name and int(rest.split()[1]) == os.getpid():
            return int(stat.parent.name)
    raise AssertionError("no process of W&B's")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed in mid-run", "crashes at the end"])
def test_when_wandbs_own_process_dies_the_training_goes_on_and_the_next_run_has_a_new_one(
    fault: str, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if fault == "crashes at the end":
        server.fault = "crashing"
    else:
        in_epoch_two(lambda: os.kill(core_of_this_process(), signal.SIGKILL), monkeypatch)
    folder = train(server.address, monkeypatch)
    printed = capfd.readouterr()
    assert "its process failed" in printed.out
    assert hinted(printed.out) == list(folder.glob("wandb/run-*"))
    assert "Traceback" not in printed.out + printed.err
    folder.rename("earlier")
    server.fault = ""
    server.history.clear()
    monkeypatch.setattr(ImageClassifier, "on_train_epoch_start", lambda module: None)
    train(server.address, monkeypatch)
    assert losses(server.history) > EPOCHS


def test_the_port_of_a_dead_server_is_refused() -> None:
    with serving() as server:
        pass
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(server.address[17:]))):
        pass

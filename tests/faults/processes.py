"""Commands in processes of their own, which can be killed for real.

They are forked from one process that has imported everything, so that hundreds of them are a matter of minutes.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.test_main import QUICK, small
from vix.training.files import read_json
from vix.training.runs import Run
from vix.training.signals import Signals

ROOT = Path(__file__).parents[2]
STATES = ("state_dict", "current_model_state", "optimizer_states", "global_step", "epoch")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.preload"])

# Four epochs of nine steps with everything that has a state: dropout, EMA, redrawn features, augmentation, a checkpoint
# and a row of numbers after every step.
TRAINING = [
    *small(),
    *QUICK,
    "--trainer.max_epochs=4",
    "--data.batch_size=16",
    "--model.net.dropout=0.2",
    "--model.net.redraw=5",
    "--trainer.log_every_n_steps=1",
    "--save_every=1",
]


def _live(
    arguments: list[str], folder: Path, environment: dict[str, str], prepare: Callable[[], None] | None, log_name: str
) -> None:
    """What a command's process does; `prepare` may take things away from it before."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open(log_name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    import main

    if prepare is not None:
        prepare()
    sys.exit(main.main(arguments))


class Command:
    """`main.py` with some arguments, under way in a folder of its own.

    Args:
        arguments: As on the command line.
        folder: Where it runs.
        environment: Variables beside those of this process.
        prepare: Called in the new process before anything else.
        log: Name of the file for what it prints.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        log: str = "log",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._path = path = folder / log
        self._said_before = path.stat().st_size if path.is_file() else 0
        variables = {"WANDB_MODE": "disabled", **(environment or {})}
        earlier = os.environ.get("PYTHONPATH")
        # the process that is forked from finds our modules by this, whatever its current folder
        os.environ["PYTHONPATH"] = str(ROOT)
        try:
            self.process = FORKS.Process(target=_live, args=(arguments, folder, variables, prepare, log))
            self.process.start()
        finally:
            os.environ.pop("PYTHONPATH")
            if earlier is not None:
                os.environ["PYTHONPATH"] = earlier

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """The exit code, negative where a signal ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.log}")
        return self.process.exitcode

    @property
    def log(self) -> str:
        """What this command printed."""
        return self._path.read_bytes()[self._said_before :].decode() if self._path.is_file() else ""

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None

    def wait_until(self, seen: Callable[[], Any], seconds: float = 300) -> None:
        """Waits for something to be seen, or for the end."""
        end = time.monotonic() + seconds
        while not seen() and not self.ended:
            assert time.monotonic() < end, self.log
            time.sleep(0.002)

    def kill(self) -> bool:
        """Kills it at once; whether it was still alive."""
        # it may end while we ask
        with contextlib.suppress(ProcessLookupError):
            if not self.ended:
                self.send(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


def wait_at(step: int) -> None:
    """Lets a training wait after so many steps, with a file `waiting`, until a signal asks it to end."""
    from vix.training import ImageClassifier

    def wait(module: ImageClassifier, batch: object, index: int) -> None:
        if module.global_step == step:
            Path("waiting").touch()
            signals: Signals = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
            while not signals.wanted:
                time.sleep(0.01)

    ImageClassifier.on_train_batch_start = wait  # type: ignore[method-assign]


def runs(folder: Path) -> list[Run]:
    """The runs in a folder, oldest first."""
    return [Run(path) for path in sorted((folder / "runs").glob("*/*/"))]


def rows(folder: Path) -> int:
    """Rows of numbers that the newest run has on disk."""
    table = runs(folder)[-1].folder / "metrics.csv" if runs(folder) else None
    return table.read_text().count("\n") - 1 if table is not None and table.is_file() else 0


def finished(arguments: list[str], folder: Path, **options: Any) -> Run:
    """The run of a command that comes to its end."""
    command = Command(["fit", *arguments], folder, **options)
    assert command.wait() == 0, command.log
    return runs(folder)[-1]


def assert_same(one: Run, other: Run) -> None:
    """Two runs ended alike, bit for bit: weights, average, optimiser, schedule, randomness, numbers."""
    for path in ("last", "best"):
        contents = [torch.load(getattr(run, path), weights_only=True) for run in (one, other)]
        states = [[content[key] for key in STATES] for content in contents]
        states = [
            [*state, content["callbacks"]["RandomState"]] for state, content in zip(states, contents, strict=True)
        ]
        assert_equal(*states)
        assert contents[0]["lr_schedulers"] == contents[1]["lr_schedulers"]
        assert contents[0]["hyper_parameters"] == contents[1]["hyper_parameters"]
        assert contents[0]["callbacks"]["AveragedWeights"] == contents[1]["callbacks"]["AveragedWeights"]
    assert (one.folder / "metrics.csv").read_text() == (other.folder / "metrics.csv").read_text()
    results = [read_json(run.results) for run in (one, other)]
    for key in ("best", "last", "epochs", "steps", "finished"):
        assert results[0][key] == results[1][key]


def assert_equal(one: Any, other: Any) -> None:
    """Two nested states are the same, tensors bit for bit; torch's own comparison knows no words."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    elif isinstance(one, Mapping):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    else:
        assert one == other


def leftovers(folder: Path) -> list[str]:
    """Files that were being written."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.part")]

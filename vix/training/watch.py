"""Several processes of one training: when one of them is lost, the others end soon and say why."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from vix.training.errors import TrainingError, first_line

LOOK_SECONDS = 1.0
# How long one that still runs may take to end by itself once another is lost.
PATIENCE_SECONDS = 15.0
LOST_CONNECTION = ("connection closed by peer", "connection reset by peer", "broken pipe", "nccl", "gloo", "timed out")


class Watch(Callback):
    """Looks from a thread whether the other processes of this machine live; ends this one where it hangs without them.

    The first process started the others and sees how they ended; the others see whether the first one is still there.
    Processes that something else started, such as `torchrun` or SLURM, are that one's to watch.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._children: list[subprocess.Popen[bytes]] = []
        self._launched = False
        self._done = threading.Event()
        self.lost = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts looking."""
        launcher: Any = trainer.strategy.launcher
        self._children = list(getattr(launcher, "procs", []))
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                # Lightning's kills this process as well, without a word; with nothing to observe it ends
                thread._child_processes = []  # type: ignore[attr-defined]  # there is no public way
        environment: Any = getattr(trainer.strategy, "cluster_environment", None)
        self._launched = type(environment).__name__ == "LightningEnvironment" and trainer.local_rank > 0
        if self._children or self._launched:
            self._done.clear()
            threading.Thread(target=self._look, name="watch", daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks no longer."""
        self.end()

    def end(self) -> None:
        """Looks no longer; Lightning does not tell of an end by an error."""
        self._done.set()

    def explain(self, error: BaseException) -> TrainingError | None:
        """What to say in place of an error of the connection to another process; None where it is something else."""
        text = str(error).lower()
        if not any(words in text for words in LOST_CONNECTION):
            return None
        end = time.monotonic() + PATIENCE_SECONDS
        # the connection breaks before the system has told how the other one ended
        while not self.lost and (self._children or self._launched) and time.monotonic() < end:
            self.lost = self._loss()
            time.sleep(0.1)
        return TrainingError(
            self.lost or f"the connection to another process of this training broke: {first_line(error)}"
        )

    def _loss(self) -> str:
        """In words, how another process ended; nothing where all live or ended well."""
        if self._launched:
            return "the first process of this training is gone" if os.getppid() != self._parent else ""
        for rank, child in enumerate(self._children, start=1):
            if code := child.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"process {rank} of this training (PID {child.pid}) {how}"
        return ""

    def _look(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self.lost = self.lost or self._loss()
            if self.lost:
                break
        # mostly the broken connection ends this process; one that waits on a device has to be ended
        if self.lost and not self._done.wait(PATIENCE_SECONDS):
            print(f"{self.lost}; ending the others", file=sys.stderr, flush=True)
            for child in self._children:
                child.kill()
            os._exit(1)

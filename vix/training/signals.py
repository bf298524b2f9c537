"""SIGTERM, SIGINT and SLURM's warning: training ends at the next step that can be gone on from."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vix.training.errors import Stopped
from vix.training.processes import is_first

# Of one wish: `kill` of a whole group, or a scheduler that says it twice.
SAME_WISH_SECONDS = 1.0


class Signals:
    """Notes the first signal that asks for an end; training looks here after every step.

    Outside training, and when asked a second time, it ends at once.

    Args:
        requeue: The signal at which SLURM warns of the end and the job wants to be queued again; None without SLURM.
    """

    def __init__(self, requeue: int | None = None) -> None:
        self.requeue = requeue
        # The signal that came, 0 before.
        self.wanted = 0
        # Whether training is under way and will look.
        self.watched = False
        self._since = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What the system calls."""
        if not self.watched:
            raise Stopped(number, saved=False)
        now = time.monotonic()
        if not self.wanted:
            self.wanted, self._since = number, now
            if is_first():
                # print() is not safe where it may have been interrupted itself
                os.write(2, f"{name(number)}: stopping after this step; a second time: at once\n".encode())
        elif now - self._since > SAME_WISH_SECONDS:
            raise Stopped(number, saved=False)

    def install(self) -> dict[int, Any]:
        """Takes the signals over; Lightning takes them too when a training starts, so it is called again then."""
        if threading.current_thread() is not threading.main_thread():
            # Python gives signals to the main thread alone
            return {}
        numbers = [signal.SIGTERM, signal.SIGINT, *([self.requeue] if self.requeue else [])]
        return {number: signal.signal(number, self.handle) for number in numbers}


@contextmanager
def caught(environment: Mapping[str, str] = os.environ) -> Iterator[Signals]:
    """Catches the signals within, and gives them back to whom they belonged."""
    signals = Signals(int(signal.SIGUSR1) if under_slurm(environment) and sys.platform != "win32" else None)
    earlier = signals.install()
    try:
        yield signals
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def under_slurm(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a batch job of SLURM's."""
    return "SLURM_JOB_ID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def name(number: int) -> str:
    """The signal's name, such as SIGTERM."""
    return signal.Signals(number).name


def exit_code(stop: Stopped) -> int:
    """What a shell expects of a process that a signal ended."""
    return 128 + stop.number


def requeue_job(environment: Mapping[str, str] = os.environ) -> str:
    """Asks SLURM to queue this job again, and says in one line what came of it.

    Source: Lightning's manual, "Run on an on-prem cluster (advanced)", wall-time auto-resubmit.
    """
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} is not queued again: scontrol: {error}"
    if done.returncode:
        return f"job {job} is not queued again: scontrol: {done.stderr.strip() or done.returncode}"
    return f"job {job} is queued again and goes on from there"

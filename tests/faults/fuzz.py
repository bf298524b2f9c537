"""How fuzzing is run: a sample as a rule, all of it where VIX_FUZZ=full is set; every chunk has its own seed."""

import io
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

FULL = os.environ.get("VIX_FUZZ", "") == "full"
# A run that takes longer hangs: the slowest takes some seconds on a busy machine.
PATIENCE_SECONDS = 120
# What one run may add to the memory of the test, so that a net of a million tokens is refused like on a small machine.
MEMORY_BYTES = 4 << 30
LINES = 5


class Hang(BaseException):
    """A run took too long; no `except Exception` may take it for an error."""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Args:
        code: Its exit code.
        err: What it printed to the standard error.
    """

    code: int
    err: str

    def check(self) -> None:
        """A result, or a clean error of few lines."""
        assert self.code in (0, 1, 2)
        assert "Traceback" not in self.err
        if self.code:
            assert 1 <= len(self.err.strip().splitlines()) <= LINES, self.err


@contextmanager
def limits() -> Iterator[None]:
    """Ends what hangs, and has allocations fail that a small machine could not make."""

    def hang(*_: Any) -> None:
        raise Hang(f"no end after {PATIENCE_SECONDS} s")

    earlier, (soft, hard) = signal.signal(signal.SIGALRM, hang), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def call(command: Callable[[list[str]], int], arguments: list[str]) -> Outcome:
    """Runs a command in this process as a shell would, and puts torch's switches back."""
    err = io.StringIO()
    algorithms = torch.are_deterministic_algorithms_enabled()
    with limits(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(err):
        # a terminal shows them, and they end nothing
        warnings.simplefilter("default")
        # Python's options, of which pytest has its own, decide what a command lets through
        options, sys.warnoptions = sys.warnoptions, []
        try:
            code = command(arguments)
        finally:
            sys.warnoptions = options
            torch.use_deterministic_algorithms(algorithms)
            torch.autograd.set_detect_anomaly(False)
            torch.set_default_dtype(torch.float32)
    return Outcome(code, err.getvalue())


def hold(law: Callable[..., None], examples: int, number: int, **strategies: Any) -> None:
    """Tries a law on drawn examples.

    Args:
        law: Raises where it is broken.
        examples: How many.
        number: Of the chunk, from which everything that is drawn follows.
        strategies: What its arguments are drawn from.
    """
    chosen = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate, Phase.shrink) if not FULL else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    seed(number)(chosen(given(**strategies)(law)))()

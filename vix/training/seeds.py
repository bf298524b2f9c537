"""`fit --seeds 0,1,2`: the same training once for each seed, one after another, each in a run folder of its own."""

import subprocess
import sys
from pathlib import Path

from vix.training.console import say
from vix.training.errors import Stopped, UsageError
from vix.training.signals import caught, exit_code
from vix.training.sources import CommandLine


def read_seeds(text: str) -> list[int]:
    """Seeds from `0,1,2`.

    Raises:
        UsageError: If they are not different whole numbers from 0 on.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise UsageError(f"--seeds {text}: expected different whole numbers joined by commas, such as 0,1,2")
    return [int(word) for word in words]


def repeat(line: CommandLine, program: Path) -> int:
    """Trains once for each seed.

    Each run is a process of its own: nothing of one reaches the next, and a run may itself start one a device.

    Args:
        line: What the user typed.
        program: The entry, `main.py`.

    Returns:
        0, or the exit code of the first run that failed, after which no other is begun.

    Raises:
        UsageError: If the seeds are wrong, or something else on the line contradicts them.
    """
    seeds = read_seeds(line.own["seeds"])
    if line.command != "fit":
        raise UsageError(f"--seeds belongs to fit; {line.command} works on one run")
    for key in ("ckpt_path", "resume", "find"):
        if key in line.own:
            raise UsageError(f"--seeds and --{key} do not go together: give each run on its own")
    if setting := line.find("seed_everything"):
        raise UsageError(
            f"{setting.source}: seed_everything: {setting.value}, but --seeds gives the seeds; leave it out"
        )
    for number, seed in enumerate(seeds, start=1):
        say(f"seed {seed} ({number} of {len(seeds)})")
        process = subprocess.Popen([sys.executable, str(program), "fit", *line.arguments, f"--seed_everything={seed}"])
        with caught():
            try:
                code = process.wait()
            except Stopped as stop:
                # from the keyboard the run got it too, but twice within a second is once
                process.send_signal(stop.number)
                code = process.wait() or exit_code(stop)
        if code:
            return code
    runs = line.find("runs")
    say(f"all seeds side by side: python main.py report {runs.value if runs else 'runs'}")
    return 0

"""Several processes train like one, end like one, and leave one run."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only

from tests.faults.processes import ROOT, Command, assert_same, finished, leftovers, rows, runs, wait_at
from tests.test_main import QUICK, overlay, small
from tests.training import wandb_file
from vix.training.callbacks.ranks import rank_seed
from vix.training.checkpoint import read_checkpoint
from vix.training.runs import Run

pytestmark = pytest.mark.slow

# 128 images, eight steps of sixteen; nothing is random but the order.
STEPS = ["--data.fraction=0.0989", "--data.augment.crop=0", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=2"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


def free_port() -> str:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return str(place.getsockname()[1])


def pair(
    arguments: list[str],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    second: Callable[[], None] | None = None,
) -> list[Command]:
    """A command's two processes, as a launcher would start them; `second` is called first in the second one."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    common |= environment or {}
    return [
        Command(
            [*arguments, *TWO],
            folder,
            environment={**common, "LOCAL_RANK": str(rank)},
            prepare=second if rank else None,
            log=f"log{rank}",
        )
        for rank in range(2)
    ]


def trained(arguments: list[str], folder: Path) -> Run:
    """The one run of two processes."""
    processes = pair(["fit", *arguments], folder)
    assert [process.wait() for process in processes] == [0, 0], [process.log for process in processes]
    (run,) = runs(folder)
    return run


def table(run: Run) -> list[dict[str, float]]:
    with (run.folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["vip_rope", "levit"])
def test_two_processes_give_the_numbers_of_one_with_the_same_images_a_step(name: str, tmp_path: Path) -> None:
    training = [*small(name), *QUICK, *STEPS]
    one = finished([*training, "--data.batch_size=16"], tmp_path / "one")
    two = trained([*training, "--data.batch_size=8", "--trainer.sync_batchnorm=true"], tmp_path / "two")
    pairs = list(zip(table(one), table(two), strict=True))
    assert len(pairs) == 16
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            # an image counts for the other class where two logits are nearer than rounding
            assert value == pytest.approx(theirs[key], abs=2 / 128 if "top" in key else 1e-5, rel=1e-5), key
    if name == "vip_rope":
        # LeViT has weights on which nothing depends, and Adam makes steps of the rounding of their gradients
        weights = [read_checkpoint(run.last).weights for run in (one, two)]
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def second_without_wandb() -> None:
    """Lets every `import wandb` of the second process fail."""
    sys.modules["wandb"] = None  # type: ignore[assignment]
    # which Lightning reads from LOCAL_RANK when it is imported, and that was before the fork
    rank_zero_only.rank = 1  # type: ignore[attr-defined]


def test_only_the_first_process_knows_wandb_and_there_is_one_run(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    training = ["fit", *small(), *QUICK, *STEPS, "--data.batch_size=8", "--trainer.max_epochs=1", "--wandb.images=2"]
    processes = pair(
        training, tmp_path, environment={"WANDB_MODE": "offline", "HOME": str(home)}, second=second_without_wandb
    )
    assert [process.wait() for process in processes] == [0, 0], [process.log for process in processes]
    (run,) = runs(tmp_path)
    (part,) = tmp_path.rglob("*.wandb")
    assert part.parent.parent == run.folder / "wandb"
    assert part.parent.name.startswith("offline-run-")
    assert wandb_file.run(part).run_id == run.id
    steps = [row["trainer/global_step"] for row in wandb_file.history(part) if "train/loss_step" in row]
    assert steps == list(range(8))
    assert [process.log.count("wandb sync") for process in processes] == [1, 0]


def test_two_processes_evaluate_every_image_once(tmp_path: Path) -> None:
    run = finished([*small(), *QUICK], tmp_path)
    arguments, seen = ["test", "--ckpt_path", str(run.folder)], []
    for processes in (1, 2):
        commands = pair(arguments, tmp_path) if processes == 2 else [Command(arguments, tmp_path)]
        assert {command.wait() for command in commands} == {0}, [command.log for command in commands]
        scores = json.loads(run.results.read_text())["test"]
        assert scores["device"]["processes"] == processes
        seen.append((scores, run.predictions.read_text()))
    (one, rows_of_one), (two, rows_of_two) = seen
    assert rows_of_one == rows_of_two
    assert one["images"] == two["images"] == 359
    assert one["test/confusion"] == two["test/confusion"]
    assert [one[f"test/{name}"] for name in ("top1", "top5")] == [two[f"test/{name}"] for name in ("top1", "top5")]
    assert one["test/loss"] == pytest.approx(two["test/loss"], abs=1e-6)


def test_two_processes_stop_at_the_same_step_and_go_on_exactly(tmp_path: Path) -> None:
    training = [*small(), *QUICK, *STEPS, "--data.batch_size=8", "--model.net.dropout=0.2", "--save_every=1"]
    whole = trained(training, tmp_path / "whole")
    folder = tmp_path / "parts"
    processes = pair(["fit", *training], folder, second=partial(wait_at, 3))
    processes[0].wait_until(lambda: (folder / "waiting").exists())
    # one of them is told, both stop
    processes[1].send(signal.SIGTERM)
    assert [process.wait() for process in processes] == [143, 0], [process.log for process in processes]
    (run,) = runs(folder)
    assert f"python main.py fit --ckpt_path runs/vip_rope/{run.id}" in processes[0].log
    assert read_checkpoint(run.last).step == 4
    assert trained([*training, "--resume", "auto"], folder).folder == run.folder
    assert_same(whole, run)
    random = torch.load(run.last, weights_only=True)["callbacks"]["RandomState"]["ranks"]
    assert not torch.equal(random[0]["cpu"], random[1]["cpu"])
    # what each drew its dropout from follows from the run's seed
    assert [seed_of(state["cpu"]) for state in random] == [rank_seed(0, rank) for rank in range(2)]
    assert not leftovers(folder)


def seed_of(state: torch.Tensor) -> int:
    """What a generator of this state was seeded with."""
    generator = torch.Generator()
    generator.set_state(state)
    return generator.initial_seed()


def main(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), "fit", *small(), *QUICK, *arguments]


ENDLESS = [*overlay("two_gpus"), "--trainer.accelerator=cpu", "--trainer.max_epochs=100000", "--save_every=1"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("lost", [0, 1])
def test_the_loss_of_a_process_ends_the_others_within_a_minute_with_the_cause(lost: int, tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(main(*ENDLESS), cwd=tmp_path, stdout=log, stderr=log, env=environment)
    end = time.monotonic() + 400
    while rows(tmp_path) < 3:
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.1)
    # the launched process runs the same command
    other = next(pid for pid in children(process.pid) if b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    start = time.monotonic()
    os.kill((process.pid, other)[lost], signal.SIGKILL)
    while alive(process.pid) or alive(other):
        process.poll()
        assert time.monotonic() < start + 60, (tmp_path / "log").read_text()
        time.sleep(0.05)
    told = (tmp_path / "log").read_text()
    causes = ["the first process of this training is gone", rf"process 1 .*PID {other}.* killed by SIGKILL"]
    assert re.search(causes[lost], told), told
    assert "Traceback" not in told
    # the first one's own end is that of the signal
    assert process.wait() == (-signal.SIGKILL, 1)[lost]
    (run,) = runs(tmp_path)
    assert read_checkpoint(run.last).step >= 3


def test_torchrun_trains_one_run_with_weights_and_biases(tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, *main("--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp")[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = runs(tmp_path)
    results = json.loads(run.results.read_text())
    assert results["finished"] is True
    assert results["device"]["processes"] == 2
    assert len(list(run.folder.glob("wandb/offline-run-*"))) == 1
    assert done.stdout.count("python main.py test --ckpt_path") == 1

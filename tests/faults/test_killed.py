"""Runs that are killed at any moment, and runs that are asked to end: nothing is lost, and they go on exactly."""

import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from pytorch_lightning import Trainer

from tests.faults.processes import TRAINING, Command, assert_same, finished, leftovers, runs, wait_at
from vix.training.checkpoint import read_checkpoint
from vix.training.files import read_json
from vix.training.runs import Run
from vix.training.signals import SAME_WISH_SECONDS

pytestmark = pytest.mark.slow

# VIX_FULL=1 kills as often as docs/faults.md says; otherwise a sample.
KILLS = 50 if os.environ.get("VIX_FULL") else 4
MOST_KILLS_OF_A_RUN = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, float]:
    """The uninterrupted run, and the seconds it took from its folder's appearance to the end."""
    folder = tmp_path_factory.mktemp("whole")
    command = Command(["fit", *TRAINING], folder)
    command.wait_until(lambda: runs(folder))
    start = time.monotonic()
    assert command.wait() == 0, command.log
    return runs(folder)[-1], time.monotonic() - start


def killed_sometime(folder: Path, within: float) -> bool:
    """Starts or resumes the training and kills it at some time after it has begun; whether it still lived then."""
    command = Command(["fit", *TRAINING, "--resume", "auto"], folder)
    before = len(runs(folder))
    command.wait_until(lambda: len(runs(folder)) > before or "resuming" in command.log)
    time.sleep(within)
    if command.kill():
        return True
    assert command.wait() == 0, command.log
    return False


def test_a_run_killed_at_any_moment_goes_on_and_ends_like_the_uninterrupted_one(
    whole: tuple[Run, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, seconds = whole
    random = Random(0)
    kills = writing = without = trainings = 0
    steps = []
    while kills < KILLS:
        trainings += 1
        folder = tmp_path / str(trainings)
        alive = True
        for _ in range(min(MOST_KILLS_OF_A_RUN, KILLS - kills)):
            alive = killed_sometime(folder, random.uniform(0, seconds))
            if not alive:
                break
            kills += 1
            last = runs(folder)[-1].last
            writing += bool(leftovers(folder))
            if last.is_file():
                # the newest complete checkpoint always loads
                steps.append(read_checkpoint(last).step)
            else:
                without += 1
        run = finished([*TRAINING, "--resume", "auto"], folder) if alive else runs(folder)[-1]
        assert_same(reference, run)
        assert not leftovers(run.folder)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{kills} kills in {trainings} trainings: {writing} while a file was being written, {without} before the "
            f"first checkpoint, {len(steps)} after it (step {min(steps, default=0)} to {max(steps, default=0)} of 36)\n"
        )


def test_killed_between_the_last_checkpoint_and_its_copy_as_the_best_the_copy_is_made_up_for(
    whole: tuple[Run, float], tmp_path: Path
) -> None:
    reference, _ = whole
    best = read_json(reference.results)["best"]["epoch"]
    assert best > 1
    folder = tmp_path / "between"
    assert Command(["fit", *TRAINING], folder, prepare=partial(die_before_the_best_of, best)).wait() == -signal.SIGKILL
    (run,) = runs(folder)
    assert read_checkpoint(run.last).epoch == best
    assert read_checkpoint(run.best).epoch < best
    finished([*TRAINING, "--resume", "auto"], folder)
    assert_same(reference, run)


def test_killed_so_at_the_end_of_training_the_copy_is_made_up_for_though_nothing_is_left_to_train(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "end"
    training = [*TRAINING, "--trainer.max_epochs=1"]
    assert Command(["fit", *training], folder, prepare=partial(die_before_the_best_of, 1)).wait() == -signal.SIGKILL
    assert not runs(folder)[-1].best.is_file()
    run = finished([*training, "--resume", "auto"], folder)
    assert run.best.read_bytes() == run.last.read_bytes()
    assert read_json(run.results)["finished"] is True


def die_before_the_best_of(epoch: int) -> None:
    from vix.training.callbacks.checkpoints import BestAndLast

    save = BestAndLast._save_last

    def save_and_die(self: BestAndLast, trainer: Trainer) -> None:
        save(self, trainer)
        if self._new_best and self.best["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    BestAndLast._save_last = save_and_die  # type: ignore[method-assign]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_run_that_is_asked_to_end_saves_its_last_step_and_says_how_to_go_on(
    number: int, code: int, whole: tuple[Run, float], tmp_path: Path
) -> None:
    folder = tmp_path / "asked"
    training = [argument for argument in TRAINING if not argument.startswith("--save_every")]
    # in the middle of the second epoch
    command = Command(["fit", *training], folder, prepare=partial(wait_at, 12))
    command.wait_until(lambda: (folder / "waiting").exists())
    command.send(number)
    assert command.wait() == code, command.log
    (run,) = runs(folder)
    name = signal.Signals(number).name
    assert f"{name}: stopping after this step" in command.log
    assert re.search(rf"stopped by {name}\n.*python main.py fit --ckpt_path runs/vip_rope/{run.id}\n$", command.log)
    assert "Traceback" not in command.log
    step = read_checkpoint(run.last).step
    assert step == 13
    assert (run.folder / "metrics.csv").read_text().splitlines()[-1].split(",")[1] == str(step)
    assert not leftovers(folder)
    assert finished(["--ckpt_path", str(run.folder)], folder).folder == run.folder
    assert_same(whole[0], run)


def test_before_training_begins_the_end_comes_at_once_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "early"
    command = Command(["fit", *TRAINING], folder, prepare=stop_when_data_is_read)
    assert command.wait() == 143, command.log
    assert "stopped by SIGTERM, at once" in command.log
    assert "no checkpoint had been written yet" in command.log
    assert not runs(folder)


def stop_when_data_is_read() -> None:
    from datamodules import Digits

    Digits.fetch_source = lambda self: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[method-assign]


def test_a_second_signal_ends_at_once_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    command = Command(["fit", *TRAINING], folder, prepare=hang_in_the_third_epoch)
    command.wait_until(lambda: (folder / "hanging").exists())
    command.send(signal.SIGINT)
    # a second one within a second counts as the same, from when it was heard, which may be later than it was sent
    command.wait_until(lambda: "a second time: at once" in command.log)
    time.sleep(SAME_WISH_SECONDS + 0.1)
    assert not command.ended
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.log
    assert "stopped by SIGINT, at once" in command.log
    assert read_checkpoint(runs(folder)[-1].last).step == 18


def hang_in_the_third_epoch() -> None:
    from vix.training import ImageClassifier

    def hang(module: ImageClassifier) -> None:
        if module.current_epoch == 2:
            Path("hanging").touch()
            time.sleep(600)

    ImageClassifier.on_train_epoch_start = hang  # type: ignore[method-assign]


def test_slurm_queues_a_warned_job_again_and_the_same_command_goes_on(whole: tuple[Run, float], tmp_path: Path) -> None:
    tools, folder = tmp_path / "tools", tmp_path / "job"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tools}/asked\n')
    (tools / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "vix", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1", "PATH": f"{tools}:{os.environ['PATH']}"}
    command = Command(["fit", *TRAINING], folder, environment=job, prepare=partial(wait_at, 12))
    command.wait_until(lambda: (folder / "waiting").exists())
    command.send(signal.SIGUSR1)
    assert command.wait() == 128 + signal.SIGUSR1, command.log
    assert (tools / "asked").read_text() == "requeue 7\n"
    assert "job 7 is queued again" in command.log
    (run,) = runs(folder)
    assert finished(TRAINING, folder, environment={**job, "SLURM_RESTART_COUNT": "1"}).folder == run.folder
    assert_same(whole[0], run)


def test_no_second_process_may_train_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "held"
    first = Command(["fit", *TRAINING], folder, prepare=hang_in_the_third_epoch)
    first.wait_until(lambda: (folder / "hanging").exists())
    (run,) = runs(folder)
    before = torch.load(run.last, weights_only=True)["global_step"], (run.folder / "metrics.csv").read_text()
    second = Command(["fit", *TRAINING, "--resume", "auto"], folder)
    assert second.wait() == 2, second.log
    assert "another process is training this run" in second.log
    assert before == (torch.load(run.last, weights_only=True)["global_step"], (run.folder / "metrics.csv").read_text())
    assert first.kill()

"""A training that stops after any step goes on as if nothing had been, whatever has a state."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from tests.faults.processes import assert_same
from tests.test_main import QUICK, files, fit, small
from vix.training import ImageClassifier
from vix.training.callbacks.progress import RichProgress
from vix.training.checkpoint import read_checkpoint
from vix.training.runs import Run

# Two epochs of three steps.
BASE = ["--trainer.max_epochs=2", "--data.batch_size=48", "--trainer.log_every_n_steps=1"]
VARIANTS = {
    "dropout, average, redrawn features": ["--model.net.dropout=0.2", "--model.net.redraw=2"],
    "augmentation": [f"--data.augment.{name}" for name in ("crop=1", "rotate=10", "erase=0.5", "mixup=0.8")],
    "accumulation": ["--data.batch_size=16", "--trainer.accumulate_grad_batches=3", "--model.net.dropout=0.2"],
    "workers": ["--data.num_workers=2", "--model.net.dropout=0.2"],
    # it is due when the signal comes, so the training stops a step later
    "validation within the epoch": ["--data.batch_size=24", "--trainer.val_check_interval=0.5"],
    "momentum without schedule": [
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.1",
        "--model.schedule=null",
    ],
    "Muon and AdamW": ["--model.optimizer=vix.training.MuonAdamW", "--model.optimizer.lr=0.01"],
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Has SIGTERM come while a step (from 0) is computed."""
    original = ImageClassifier.training_step

    def interrupted(module: ImageClassifier, batch: Any, batch_index: int) -> Any:
        if module.trainer.global_step == step and not module.trainer.interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(module, batch, batch_index)

    monkeypatch.setattr(ImageClassifier, "training_step", interrupted)


def interrupted_runs(options: list[str], step: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """A whole run, and one of the same settings that was interrupted at a step and resumed."""
    whole = fit(*options)
    with monkeypatch.context() as patch:
        interrupt(patch, step)
        assert main.main(["fit", *small(), *QUICK, *options]) == 143
    (parts,) = (Run(folder) for folder in Path("runs/vip_rope").iterdir() if folder != whole.folder)
    assert main.main(["fit", *small(), *QUICK, *options, "--resume", "auto"]) == 0
    return whole, parts


@pytest.mark.slow
@pytest.mark.parametrize("step", range(5))
def test_a_training_that_stops_after_any_step_is_resumed_exactly(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*BASE, *VARIANTS["dropout, average, redrawn features"]]
    assert_same(*interrupted_runs(options, step, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS)[1:])
def test_whatever_has_a_state_goes_on_in_the_middle_of_an_epoch(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(*interrupted_runs([*BASE, *VARIANTS[variant]], 2 if "validation" in variant else 4, monkeypatch))


def test_in_the_middle_of_an_epoch_the_step_is_saved_and_the_command_told_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, 1)
    assert main.main(["fit", *small(), *QUICK, *BASE]) == 143
    (run,) = (Run(folder) for folder in Path("runs/vip_rope").iterdir())
    assert read_checkpoint(run.last).step == 2
    assert f"python main.py fit --ckpt_path {run.folder}" in capsys.readouterr().err
    assert not [path for path in files() if ".part" in path]


def test_auto_goes_on_with_the_newest_unfinished_run_of_the_same_command_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", *small(), *QUICK, *BASE]
    assert main.main([*command, "--resume", "auto"]) == 0
    assert "no unfinished run of this command in runs/vip_rope: starting a new one" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        assert main.main([*command, "--seed_everything=3"]) == 143
    before = set(Path("runs/vip_rope").iterdir())
    assert len(before) == 2
    # another seed is another training, and what is finished is not begun again
    assert main.main([*command, "--resume", "auto"]) == 0
    (new,) = set(Path("runs/vip_rope").iterdir()) - before
    # where and how it is kept may differ
    assert main.main([*command, "--seed_everything=3", "--save_every=2", "--resume=auto"]) == 0
    assert set(Path("runs/vip_rope").iterdir()) == before | {new}


def test_a_damaged_last_checkpoint_gives_way_to_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(*BASE)
    run.last.write_bytes(run.last.read_bytes()[:1000])
    assert main.main(["fit", "--ckpt_path", str(run.folder), "--trainer.max_epochs=3"]) == 0
    assert "not a readable checkpoint" in capsys.readouterr().out
    assert read_checkpoint(run.last).epoch == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fit", "--resume", "last"], "--resume last: fit resumes with --resume auto, or with --ckpt_path"),
        (["test", "--resume", "auto"], "--resume auto: fit resumes with"),
        (["fit", "--seeds", "0", "--resume", "auto"], "--seeds and --resume do not go together"),
    ],
)
def test_what_cannot_be_resumed_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*arguments, *small()]) == 2
    assert told in capsys.readouterr().err
    assert not files()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_id_with_weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        assert main.main(["fit", *small(), *QUICK, *BASE]) == 143
    (folder,) = Path("runs/vip_rope").iterdir()
    assert main.main(["fit", "--ckpt_path", str(folder)]) == 0
    assert {path.suffix for path in folder.glob("wandb/offline-run-*/*.wandb")} == {".wandb"}
    assert {path.stem for path in folder.glob("wandb/offline-run-*/*.wandb")} == {f"run-{folder.name}"}


def test_the_bar_shows_an_epoch_that_is_resumed_in_its_middle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        assert main.main(["fit", *small(), *QUICK, *BASE]) == 143
    (folder,) = Path("runs/vip_rope").iterdir()
    monkeypatch.setattr("vix.training.cli.LineProgress", RichProgress)
    capsys.readouterr()
    assert main.main(["fit", "--ckpt_path", str(folder)]) == 0
    assert "epoch 2/2" in capsys.readouterr().out


def test_all_of_an_epochs_images_count_in_its_means_though_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 1)
    assert main.main(["fit", *small(), *QUICK, *BASE]) == 143
    (run,) = (Run(folder) for folder in Path("runs/vip_rope").iterdir())
    sums = torch.load(run.last, weights_only=True)["vix"]["train_scores"]
    assert sums["images"] == 2 * 48

"""What the parts of the recipe do when they are switched on from the command line."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import main
from tests.test_main import EXPERIMENTS, QUICK, files, fit, overlay, small, system
from vix.training.runs import Run

FSDP2 = "pytorch_lightning.strategies.ModelParallelStrategy"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def columns(run: Run) -> set[str]:
    with (run.folder / "metrics.csv").open(newline="") as file:
        return set(csv.DictReader(file).fieldnames or ())


def test_scores_on_mixed_images_are_named_so_and_validation_is_on_whole_ones() -> None:
    mixed = columns(fit("--data.augment.mixup=0.8", "--data.augment.cutmix=1"))
    assert {"train/top1_mixed", "train/top5_mixed", "val/top1"} <= mixed
    assert "train/top1" not in mixed
    assert "train/top1" in columns(fit("--data.augment.mixup=0", "--data.augment.cutmix=0"))


def test_the_average_is_what_is_tested_and_null_switches_it_off() -> None:
    averaged, plain = fit("--ema=0.9"), fit("--ema=null")
    content = torch.load(averaged.best, weights_only=True)
    assert any(not torch.equal(content["state_dict"][k], v) for k, v in content["current_model_state"].items())
    assert "current_model_state" not in torch.load(plain.best, weights_only=True)
    # a step of both trainings is the same, and the averaged one is validated with other weights
    torch.testing.assert_close(
        content["current_model_state"], torch.load(plain.best, weights_only=True)["state_dict"], rtol=0, atol=0
    )
    assert main.main(["test", "--ckpt_path", str(averaged.folder)]) == 0


def test_early_stopping_ends_a_training_that_does_not_get_better() -> None:
    hopeless = ["--model.optimizer.lr=0", "--trainer.max_epochs=9", "--trainer.callbacks.patience=2"]
    run = fit(*overlay("early_stopping"), *hopeless)
    results = json.loads(run.results.read_text())
    assert results["epochs"] == 3
    assert results["finished"] is True


def test_accumulation_takes_a_step_for_several_batches() -> None:
    runs = [fit(f"--trainer.accumulate_grad_batches={n}", "--data.batch_size=13") for n in (1, 3)]
    counts = [json.loads(run.results.read_text()) for run in runs]
    assert [each["steps"] for each in counts] == [10, 4]


def test_the_finders_suggest_and_leave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", *small("vit"), *QUICK, "--find", "lr"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert 1e-5 < float(told.rpartition("=")[2]) < 1
    assert main.main(["fit", *small("vit"), *QUICK, "--find=batch_size", "--data.batch_size=16"]) == 0
    assert "batches of 129 images fit, no larger was tried; to use them: --data.batch_size=129" in (
        capsys.readouterr().out
    )
    assert not [path for path in files() if not path.startswith("data")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fit", "--seeds", "0,0"], "--seeds 0,0: expected different whole numbers joined by commas"),
        (["fit", "--seeds", "a"], "--seeds a: expected different whole numbers"),
        (
            ["fit", "--seeds", "0", "--seed_everything=1"],
            "command line: seed_everything: 1, but --seeds gives the seeds",
        ),
        (["fit", "--seeds", "0", "--ckpt_path", "x"], "--seeds and --ckpt_path do not go together"),
        (["test", "--seeds", "0", "--ckpt_path", "x"], "--seeds belongs to fit"),
        (["fit", "--find", "x", *system("vit")], "--find x: fit can find lr or batch_size"),
        (["fit", "--ema", "1", *system("vit")], "command line: ema: must be at least 0 and below 1, or null, got 1.0"),
        (
            ["fit", *system("vit"), f"--trainer.strategy.class_path={FSDP2}"],
            "command line: trainer.strategy: ModelParallelStrategy (FSDP2) is not offered",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    assert told in capsys.readouterr().err
    assert not files()


def test_each_seed_is_a_process_of_its_own_and_the_first_failure_is_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            called.append(command)

        def wait(self) -> int:
            return int("--seed_everything=5" in called[-1])

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert main.main(["fit", *system("vit"), "--seeds=3,4"]) == 0
    assert "python main.py report runs" in capsys.readouterr().out
    program = [sys.executable, str(Path(main.__file__).resolve()), "fit", *system("vit")]
    assert called == [[*program, "--seed_everything=3"], [*program, "--seed_everything=4"]]
    assert main.main(["fit", *system("vit"), "--seeds=5,6"]) == 1
    assert called[2:] == [[*program, "--seed_everything=5"]]


@pytest.mark.slow
def test_seeds_repeat_a_training_in_folders_of_their_own() -> None:
    assert main.main(["fit", *small(), *QUICK, "--seeds", "1,2"]) == 0
    runs = sorted(Path("runs/vip_rope").iterdir())
    assert [json.loads(Run(run).results.read_text())["seed"] for run in runs] == [1, 2]


def test_every_part_of_the_recipe_is_named_with_its_off_switch() -> None:
    recipe = yaml.safe_load((EXPERIMENTS / "defaults.yaml").read_text())
    bare = yaml.safe_load((EXPERIMENTS / "overlays" / "published_recipe.yaml").read_text())
    augment = recipe["data"]["init_args"]["augment"]
    off = bare["data"]["init_args"]["augment"]
    assert augment.keys() == off.keys()
    assert not any(off.values())
    assert (bare["ema"], bare["model"]["schedule"], bare["trainer"]["gradient_clip_val"]) == (None, None, None)
    assert recipe.keys() >= {"ema", "model", "data", "trainer"}
    assert recipe["trainer"]["accumulate_grad_batches"] == 1

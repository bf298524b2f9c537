"""Two processes train one net, average its weights, and score each image once."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytorch_lightning import Trainer

import main
from tests.training.test_average import expected
from tests.training.two_processes import DECAY, classifier, data
from vix.training import ImageClassifier
from vix.training.callbacks import PredictionTable
from vix.training.callbacks.average import averaged
from vix.training.console import quiet
from vix.training.runs import Run

pytestmark = pytest.mark.slow


class Trained(NamedTuple):
    run: Run
    ranks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "tests.training.two_processes", str(folder)]
    place = Path(main.__file__).parent
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    return Trained(Run(folder / "runs" / "levip" / "1"), ranks)


def alone(run: Run, folder: Path) -> tuple[dict[str, float], Run]:
    """Validation scores of the last checkpoint in one process, and a run with the files of a test of the best one."""
    one = Run(folder / "runs" / "levip" / "1")
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            callbacks=[PredictionTable(one, run.best)],
        )
        trainer.validate(ImageClassifier.load_from_checkpoint(run.last), datamodule=data(), verbose=False)
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        trainer.test(ImageClassifier.load_from_checkpoint(run.best), datamodule=data(), verbose=False)
    return scores, one


def test_both_processes_have_the_average_that_the_formula_gives(trained: Trained) -> None:
    first, second = trained.ranks
    names = list(averaged(classifier()))
    assert len(first["steps"]) > 10
    assert any(name.endswith("running_var") for name in names)
    formula = expected(first["steps"], DECAY, names)
    last = torch.load(trained.run.last, weights_only=True)
    for found in (first["validated"][-1], second["validated"][-1], first["after"], second["after"], last["state_dict"]):
        torch.testing.assert_close({name: found[name] for name in names}, formula)
    assert not torch.equal(last["current_model_state"][names[0]], formula[names[0]])


def test_both_processes_validate_the_net_that_the_checkpoint_has(trained: Trained) -> None:
    first, second = (rank["validated"][-1] for rank in trained.ranks)
    # Performer's directions were drawn anew by each, and so were the counts of its steps
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, torch.load(trained.run.last, weights_only=True)["state_dict"], rtol=0, atol=0)


def test_scores_of_two_processes_are_those_of_one_and_no_image_counts_twice(trained: Trained, tmp_path: Path) -> None:
    validated, one = alone(trained.run, tmp_path)
    theirs, ours = (json.loads(run.results.read_text())["test"] for run in (one, trained.run))
    assert (ours["device"]["processes"], theirs["device"]["processes"]) == (2, 1)
    assert ours["images"] == theirs["images"] == 359
    assert sum(map(sum, ours["test/confusion"])) == 359
    assert ours["test/confusion"] == theirs["test/confusion"]
    assert ours["test/class_top1"] == theirs["test/class_top1"]
    for name in ("test/top1", "test/top5", "test/loss", "test/calibration_error"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    tables = [list(csv.DictReader(run.predictions.read_text().splitlines())) for run in (one, trained.run)]
    assert len({row["index"] for row in tables[1]}) == len(tables[1]) == 359
    for row, other in zip(*tables, strict=True):
        assert {**row, "probability": ""} == {**other, "probability": ""}
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=2e-6)
    for name, value in validated.items():
        assert trained.ranks[0]["scores"][name] == pytest.approx(value, rel=1e-5), name
    assert trained.ranks[0]["scores"] == trained.ranks[1]["scores"]

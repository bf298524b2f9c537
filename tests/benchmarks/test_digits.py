"""The runner of the Digits tables: which cells there are, that they are filled once, and whole or not at all."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import digits
from benchmarks.digits import SVM, Cell, cells, fit_arguments, main, schedule, systems, train_images


def test_the_tables_are_what_was_promised() -> None:
    tables = cells()
    assert len(systems()) == 29
    assert len(tables["systems"]) == 29 * 3
    assert len({cell.experiment for cell in tables["data"]}) == 6
    assert {cell.share for cell in tables["data"]} == {0.05, 0.1, 0.25, 0.5, 1.0}
    assert {(cell.share, cell.overlay) for cell in tables["recipe"]} == {
        (share, overlay) for share in (1.0, 0.1) for overlay in ("", "published_recipe")
    }
    names = [cell.name for cell in digits.chosen(list(tables), [])]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
def test_a_share_takes_as_many_steps_as_all_images_do(share: float) -> None:
    options = dict(option.lstrip("-").split("=") for option in schedule(share))
    overlay = digits.yaml.safe_load((digits.EXPERIMENTS / "overlays" / "digits.yaml").read_text())
    batch, epochs = overlay["data"]["init_args"]["batch_size"], overlay["trainer"]["max_epochs"]
    steps = int(options["trainer.max_epochs"]) * -(-train_images(share) // batch)
    assert steps == pytest.approx(epochs * -(-train_images(1.0) // batch), rel=0.15)
    assert int(options["trainer.max_epochs"]) / int(options["trainer.check_val_every_n_epoch"]) == epochs


def test_the_arguments_name_files_that_exist_and_no_folder_of_this_machine() -> None:
    for cell in digits.chosen(["systems", "recipe"], []):
        arguments = fit_arguments(cell, Path("runs"))
        files = [argument for argument in arguments if argument.endswith(".yaml")]
        assert len(files) == 2 + bool(cell.overlay)
        assert all((digits.ROOT / file).is_file() and not Path(file).is_absolute() for file in files)


def test_finished_cells_are_skipped_and_failed_ones_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []

    def train(cell: Cell, work: Path, threads: int) -> Path:
        trained.append(cell.name)
        if cell.seed == 1 and trained.count(cell.name) == 1:
            raise subprocess.CalledProcessError(1, "main.py")
        work.mkdir(parents=True, exist_ok=True)
        (work / "results.json").write_text(json.dumps({"test": {"test/top1": 0.5}, "wall_seconds": 41.0}))
        return work

    monkeypatch.setattr(digits, "train", train)
    options = ["--tables", "systems", "--only", "vit", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")]
    assert main(options) == 1
    told = capsys.readouterr().out
    assert "vit-100-seed1: failed" in told
    assert told.count("OVER the budget of 40 s") == 2
    assert main(options) == 0
    assert main(options) == 0
    assert sorted(trained) == ["vit-100-seed0", "vit-100-seed1", "vit-100-seed1", "vit-100-seed2"]
    assert {path.name for path in (tmp_path / "r").iterdir()} == {f"vit-100-seed{seed}" for seed in (0, 1, 2)}


def test_the_support_vector_machine_stands_in_the_same_table(tmp_path: Path) -> None:
    from vix.commands.report.runs import collect, group

    options = ["--tables", "svm", "--limit", "1", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")]
    assert main(options) == 0
    (row,) = group(collect([tmp_path / "r"])[0])
    assert row.label == SVM
    # about 98 % are known of it
    assert 0.96 < (row.mean("test/top1") or 0) < 1

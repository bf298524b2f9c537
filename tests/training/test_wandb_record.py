"""What W&B is told, read back from the file of an offline run: a real training on Digits, cut off and resumed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

import main
from tests.training import wandb_file
from vix.training import ImageClassifier
from vix.training.callbacks.showing import classes_table, confusion_chart
from vix.training.callbacks.wandb_record import evenly
from vix.training.runs import Run

EXPERIMENTS = Path(main.__file__).parent / "experiments"
SIZES = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 4, "mlp_dim": 8, "features": 4, "patch_size": 4}
IMAGES = 6


@dataclass(frozen=True)
class Recorded:
    run: Run
    home: Path
    parts: list[Path]

    @property
    def history(self) -> list[dict[str, Any]]:
        return [row for part in self.parts for row in wandb_file.history(part)]

    def table(self, name: str) -> dict[str, Any]:
        """A table as it would be uploaded: an artifact of its own, with the images that it names."""
        files = [file for artifact in wandb_file.artifacts(self.parts[-1]) for file in artifact.manifest.contents]
        (path,) = [Path(file.local_path) for file in files if file.path == f"best/{name}.table.json"]
        content: dict[str, Any] = json.loads(path.read_text())
        return content


def die_in_the_third_epoch(module: ImageClassifier) -> None:
    if module.current_epoch == 2:
        raise InterruptedError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Four epochs of which the third was cut off and begun again in another call."""
    folder, home = tmp_path_factory.mktemp("current"), tmp_path_factory.mktemp("home")
    arguments = [f"--config={EXPERIMENTS / 'vip_rope.yaml'}", f"--config={EXPERIMENTS / 'overlays' / 'digits.yaml'}"]
    arguments += [f"--model.net.{name}={value}" for name, value in SIZES.items()]
    arguments += ["--data.fraction=0.2", "--trainer.max_epochs=4", "--trainer.log_every_n_steps=1"]
    arguments += [f"--wandb.images={IMAGES}", "--wandb.upload_best=true", "--wandb.tags=[first]"]
    # It would go on with the folders of an earlier test's run.
    wandb.teardown()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("XDG_DATA_HOME", raising=False)
        with patch.context() as cut:
            cut.setattr(ImageClassifier, "on_train_epoch_start", die_in_the_third_epoch)
            with pytest.raises(InterruptedError):
                main.main(["fit", *arguments])
        (place,) = Path("runs/vip_rope").iterdir()
        assert main.main(["fit", "--ckpt_path", str(place)]) == 0
        run = Run(place.absolute())
        yield Recorded(run, home, sorted(run.folder.glob("wandb/offline-run-*/*.wandb")))


@pytest.mark.slow
class TestRun:
    def test_an_interrupted_and_resumed_fit_is_one_run(self, recorded: Recorded) -> None:
        runs = [wandb_file.run(part) for part in recorded.parts]
        assert len(runs) == 2
        assert {run.run_id for run in runs} == {recorded.run.id}
        assert runs[1].resume

    def test_it_is_named_after_its_yaml_grouped_by_system_and_tagged_by_kind(self, recorded: Recorded) -> None:
        for part in recorded.parts:
            run = wandb_file.run(part)
            assert (run.display_name, run.run_group, run.project) == ("vip_rope", "ViP", "vix")
            assert set(run.tags) == {
                "family:plain",
                "attention:performer",
                "embedding:linear",
                "position:rope",
                "data:Digits",
                "first",
            }

    def test_its_configuration_is_nested_once_and_has_derived_facts(self, recorded: Recorded) -> None:
        results = json.loads(recorded.run.results.read_text())
        for part in recorded.parts:
            config = wandb_file.config(part)
            assert not [key for key in config if "/" in key or "." in key]
            assert config["model"]["net"]["init_args"]["num_classes"] == 10
            assert config["model"]["optimizer"]["init_args"]["lr"] == 1.5e-3
            assert config["trainer"]["max_epochs"] == 4
            facts = config["facts"]
            for name in ("parameters", "tokens", "flops", "commit", "versions"):
                assert facts[name] == results[name], name
            assert (facts["system"], facts["device"]["type"]) == ("ViP", "cpu")

    def test_all_x_axes_are_the_same_steps_and_agree(self, recorded: Recorded) -> None:
        for part in recorded.parts:
            assert wandb_file.metrics(part)["*"] == "trainer/global_step"
        rows = recorded.history
        assert all("trainer/global_step" in row for row in rows)
        steps = [row["trainer/global_step"] for part in recorded.parts for row in wandb_file.history(part)]
        # a resumed run begins after its checkpoint, with the first step that it takes again
        assert steps[: len(wandb_file.history(recorded.parts[0]))] == sorted(
            steps[: len(wandb_file.history(recorded.parts[0]))]
        )
        at = {
            key: [row["trainer/global_step"] for row in rows if key in row]
            for key in ("train/loss", "val/loss", "val/top1")
        }
        assert at["train/loss"] == at["val/loss"] == at["val/top1"]
        assert len(at["val/top1"]) == 4
        assert [row["epoch"] for row in rows if "val/top1" in row] == [0, 1, 2, 3]

    def test_learning_curves_are_complete(self, recorded: Recorded) -> None:
        rows = recorded.history
        results = json.loads(recorded.run.results.read_text())
        assert {"train/loss", "train/top1", "train/top5", "val/loss", "val/top1", "val/top5"} <= set().union(*rows)
        learned = sorted({row["trainer/global_step"] for row in rows if "lr" in row})
        assert learned == list(range(results["steps"]))

    def test_the_summary_has_the_best_of_validation(self, recorded: Recorded) -> None:
        results = json.loads(recorded.run.results.read_text())
        summary = wandb_file.summary(recorded.parts[-1])
        for name, value in results["best"].items():
            assert summary[f"best/{name}"] == pytest.approx(value), name
        losses = [row["val/loss"] for row in recorded.history if "val/loss" in row]
        assert summary["best/val/loss"] == pytest.approx(min(losses))

    def test_samples_show_images_with_what_was_predicted(self, recorded: Recorded) -> None:
        table = recorded.table("samples")
        assert table["columns"] == ["image", "index", "label", "prediction", "probability", "right"]
        assert len(table["data"]) == IMAGES
        split = json.loads(recorded.run.split.read_text())
        for image, index, label, prediction, probability, right in table["data"]:
            assert image["_type"] == "image-file"
            assert (image["width"], image["height"]) == (64, 64)
            assert index in split["val"]
            assert right == (label == prediction)
            assert 0.1 <= probability <= 1

    def test_misclassified_images_say_what_they_were_taken_for(self, recorded: Recorded) -> None:
        shown = next(row for row in recorded.history if "best/misclassified/count" in row)
        assert shown["best/misclassified/count"] == IMAGES
        captions = shown["best/misclassified/captions"]
        assert all(caption.split(" taken for ")[0] != caption.split(" taken for ")[1][0] for caption in captions)
        shares = [int(caption.split("(")[1].split("%")[0]) for caption in captions]
        assert shares == sorted(shares, reverse=True)

    def test_the_confusion_matrix_and_the_classes_count_every_validation_image(self, recorded: Recorded) -> None:
        best = json.loads(recorded.run.results.read_text())["best"]["val/top1"]
        images = len(json.loads(recorded.run.split.read_text())["val"])
        counts = recorded.table("confusion_table")
        assert counts["columns"] == ["Actual", "Predicted", "nPredictions"]
        assert sum(row[2] for row in counts["data"]) == images
        assert sum(row[2] for row in counts["data"] if row[0] == row[1]) == pytest.approx(best * images)
        classes = recorded.table("classes")
        assert [row[0] for row in classes["data"]] == list("0123456789")
        assert sum(row[1] for row in classes["data"]) == images
        assert sum(row[2] for row in classes["data"]) == pytest.approx(best * images)

    def test_the_best_checkpoint_is_an_artifact_of_the_run(self, recorded: Recorded) -> None:
        models = [artifact for artifact in wandb_file.artifacts(recorded.parts[-1]) if artifact.type == "model"]
        (model,) = models
        assert model.name == f"vip_rope-{recorded.run.id}"
        assert "best" in model.aliases
        (file,) = model.manifest.contents
        assert file.path == "best.ckpt"
        assert Path(file.local_path).read_bytes() == recorded.run.best.read_bytes()
        assert json.loads(model.metadata)["epoch"] == json.loads(recorded.run.results.read_text())["best"]["epoch"]

    def test_nothing_is_left_outside_the_runs_folder(self, recorded: Recorded) -> None:
        assert not [path for path in recorded.home.rglob("*") if path.is_file() and "artifacts" in path.parts]
        assert {path.name for path in recorded.run.folder.parents[2].iterdir()} <= {"runs", "data"}

    def test_the_checkpoint_of_a_run_with_wandb_is_resumed_without_it(
        self, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        monkeypatch.chdir(recorded.run.folder.parents[2])
        weights = torch.load(recorded.run.last, weights_only=True)
        assert "WandbRecord" in weights["callbacks"]
        assert main.main(["fit", "--ckpt_path", str(recorded.run.last), "--trainer.max_epochs=4"]) == 0


ROWS = [(0, 0, 0, 0.9), (1, 0, 1, 0.8), (2, 0, 1, 0.7), (3, 1, 1, 0.6)]


def test_a_class_is_told_what_it_is_taken_for_and_a_class_without_images_has_no_accuracy() -> None:
    table = classes_table(ROWS, ["cat", "dog", "fox"])
    assert table.data == [
        ["cat", 3, 1, pytest.approx(1 / 3), "dog", 2],
        ["dog", 1, 1, 1.0, None, 0],
        ["fox", 0, 0, None, None, 0],
    ]


def test_many_classes_are_a_picture_since_a_chart_could_not_hold_them() -> None:
    picture = confusion_chart(ROWS, [str(number) for number in range(200)])
    assert (picture.image.size, picture.image.mode) == ((200, 200), "L")
    assert [picture.image.getpixel((column, 0)) for column in (0, 1, 2)] == [85, 170, 0]


def test_samples_are_spread_over_the_split_and_are_all_where_there_are_few() -> None:
    rows = [(index, 0, 0, 1.0) for index in range(10)]
    assert [row[0] for row in evenly(rows, 4)] == [0, 2, 5, 7]
    assert evenly(rows, 20) == rows

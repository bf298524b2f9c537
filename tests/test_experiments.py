"""Every shipped YAML describes its own system, and that system learns."""

import csv
from pathlib import Path

import pytest
import yaml

import main
import vix

EXPERIMENTS = Path(main.__file__).parent / "experiments"
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem != "defaults")


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_is_that_of_its_system_and_position(name: str) -> None:
    net = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())["model"]["net"]
    system, rope = name.removesuffix("_rope"), name.endswith("_rope")
    assert net["class_path"].removeprefix("vix.").lower() == system.replace("_", "")
    assert net.get("init_args", {}) == ({"position": "rope"} if rope else {})


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_how_it_is_run(name: str) -> None:
    assert f"#   python main.py fit --config experiments/{name}.yaml\n" in (EXPERIMENTS / f"{name}.yaml").read_text()


def test_every_system_has_a_file_and_every_attention_without_its_own_grid_a_rope_version() -> None:
    files = {name.replace("_", "") for name in NAMES}
    for name, system in vix.SYSTEMS.items():
        assert name.lower() in files
        if issubclass(system, vix.ViT):
            assert f"{name.lower()}rope" in files


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_on_digits_halves_the_training_loss(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    # The shipped net and recipe on 32 images, until their loss is well below half of chance, ln(10). FNet needs some
    # 60 epochs of four steps, most others 5 to 20. Smoothed labels would leave a floor under the loss.
    code = main.main(
        [
            "fit",
            f"--config={EXPERIMENTS / f'{name}.yaml'}",
            f"--config={EXPERIMENTS / 'overlays' / 'digits.yaml'}",
            "--data.fraction=0.025",
            "--data.batch_size=8",
            "--data.augment.crop=0",
            "--data.augment.rotate=0",
            "--model.label_smoothing=0",
            "--trainer.max_epochs=80",
            "--trainer.limit_val_batches=1",
            "--trainer.callbacks=EarlyStopping",
            "--trainer.callbacks.monitor=train/loss",
            "--trainer.callbacks.stopping_threshold=1.0",
            "--trainer.callbacks.patience=80",
            "--trainer.callbacks.check_on_train_epoch_end=true",
        ]
    )
    assert code == 0
    (metrics,) = tmp_path.glob("runs/*/*/metrics.csv")
    with metrics.open(encoding="utf-8") as rows:
        losses = [float(row["train/loss"]) for row in csv.DictReader(rows) if row["train/loss"]]
    assert losses[-1] < losses[0] / 2

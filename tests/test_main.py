"""The commands as a user gives them, on data in its real layout, in a folder of their own."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import main
import vix
from tests.archives import Archive
from tests.training import wandb_file
from vix.spec import parameters_of
from vix.training import ImageClassifier
from vix.training.runs import Run

EXPERIMENTS = Path(main.__file__).parent / "experiments"
SYSTEMS = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem != "defaults")
SIZES = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 4, "mlp_dim": 8, "features": 4, "patch_size": 4}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def system(name: str) -> list[str]:
    return ["--config", str(EXPERIMENTS / f"{name}.yaml")]


def overlay(name: str) -> list[str]:
    return ["--config", str(EXPERIMENTS / "overlays" / f"{name}.yaml")]


def small(name: str = "vip_rope") -> list[str]:
    """A system with the arguments that make it tiny, as far as it has them."""
    chosen = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())["model"]["net"]["class_path"]
    allowed = parameters_of(getattr(vix, chosen.rpartition(".")[2]))
    return system(name) + [f"--model.net.{key}={value}" for key, value in SIZES.items() if key in allowed]


def on(archive: Archive) -> list[str]:
    return [f"--data.{key}={value}" for key, value in archive.init_args.items()]


QUICK = [*overlay("digits"), "--data.fraction=0.1", "--trainer.max_epochs=1"]


def fit(*extra: str, name: str = "vip_rope") -> Run:
    """Trains a tiny net on a tenth of Digits and gives its run."""
    before = set(Path("runs").glob("*/*"))
    assert main.main(["fit", *small(name), *QUICK, *extra]) == 0
    (folder,) = set(Path("runs").glob("*/*")) - before
    return Run(folder)


def files(folder: Path = Path()) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_systems_yaml_runs_on_cifar10_and_leaves_no_file(name: str, cifar10: Archive) -> None:
    assert main.main(["fit", *small(name), *on(cifar10), "--data.batch_size=8", "--trainer.fast_dev_run=true"]) == 0
    assert not files()


@pytest.mark.parametrize("name", ["bf16", "offline", "smoke", "digits", "early_stopping", "published_recipe"])
def test_every_overlay_runs(name: str, cifar10: Archive) -> None:
    data = [] if name == "digits" else [*on(cifar10), "--data.batch_size=8"]
    assert main.main(["fit", *small(), *overlay(name), *data, "--trainer.fast_dev_run=true"]) == 0


def test_the_overlay_for_tiny_imagenet_runs(tiny_imagenet: Archive) -> None:
    assert (
        main.main(["fit", *small(), *overlay("tiny_imagenet"), *on(tiny_imagenet), "--trainer.fast_dev_run=true"]) == 0
    )


def test_the_overlay_for_a_folder_runs(image_folder: Path) -> None:
    data = [*overlay("image_folder"), f"--data.root={image_folder}"]
    assert main.main(["fit", *small(), *data, "--trainer.fast_dev_run=true"]) == 0


def test_every_overlay_is_tested() -> None:
    tested = {"bf16", "offline", "smoke", "digits", "early_stopping", "published_recipe"}
    tested |= {"tiny_imagenet", "image_folder", "two_gpus"}
    assert {path.stem for path in (EXPERIMENTS / "overlays").glob("*.yaml")} == tested


def test_a_run_is_one_folder_and_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    run = fit()
    inside = {str(Path(path).relative_to(run.folder)) for path in files() if path.startswith("runs")}
    assert inside == {
        "config.yaml",
        "metrics.csv",
        "results.json",
        "split.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }
    assert {path.parts[0] for path in map(Path, files())} <= {"runs", "data"}
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_results_say_what_came_out_and_under_which_circumstances() -> None:
    run = fit("--seed_everything=7")
    results = json.loads(run.results.read_text())
    assert results["finished"] is True
    assert results["seed"] == 7
    assert results["best"]["epoch"] == results["last"]["epoch"] == results["epochs"] == 1
    assert 0 <= results["best"]["val/top1"] <= 1
    assert min(results[cost] for cost in ("parameters", "tokens", "flops")) > 0
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert results["device"]["processes"] == 1
    assert results["net"]["init_args"]["num_classes"] == 10
    assert results["data"]["init_args"]["seed"] == 7
    assert "validation split" in results["protocol"]
    assert {"commit", "changed", "wall_seconds", "steps", "written"} <= results.keys()
    split = json.loads(run.split.read_text())
    assert not set(split["train"]) & set(split["val"])


def test_test_needs_the_run_folder_alone_and_adds_only_scores_and_predictions() -> None:
    run = fit()
    before = files()
    assert main.main(["test", "--ckpt_path", str(run.folder)]) == 0
    after = files()
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed == {str(run.results), str(run.predictions)}
    results, earlier = json.loads(run.results.read_text()), json.loads(before[str(run.results)])
    test = results.pop("test")
    assert results == earlier
    assert test["checkpoint"] == "best.ckpt"
    with run.predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "label", "prediction", "probability"]
    assert len(rows) == test["images"] == 359
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert test["test/top1"] == pytest.approx(right / len(rows))
    confusion = torch.tensor(test["test/confusion"])
    assert confusion.shape == (10, 10)
    for row in rows:
        confusion[int(row["label"]), int(row["prediction"])] -= 1
    assert not confusion.any()
    images = torch.tensor(test["test/confusion"]).sum(1)
    assert sum(a * n for a, n in zip(test["test/class_top1"], images.tolist(), strict=True)) == pytest.approx(right)
    assert {"test/loss", "test/top5", "test/calibration_error"} <= test.keys()


def test_a_checkpoint_elsewhere_is_tested_alone_in_a_run_of_its_own(tmp_path: Path) -> None:
    alone = tmp_path / "current" / "alone.ckpt"
    fit().best.rename(alone)
    assert main.main(["test", "--ckpt_path", str(alone), "--runs", "others"]) == 0
    (run,) = Path("others/vip_rope").iterdir()
    assert {path.name for path in run.iterdir()} == {"results.json", "predictions.csv"}


def test_validate_repeats_the_best_score_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit()
    before, best = files(), json.loads(run.results.read_text())["best"]
    capsys.readouterr()
    assert main.main(["validate", "--ckpt_path", str(run.folder)]) == 0
    assert f"top1 {best['val/top1']:.2%}" in capsys.readouterr().out
    assert files() == before


def test_predict_writes_one_row_an_image() -> None:
    run = fit()
    assert main.main(["predict", "--ckpt_path", str(run.folder)]) == 0
    assert len((run.folder / "predict.csv").read_text().splitlines()) == 1 + 359


def test_two_runs_never_touch_each_others_files() -> None:
    first = fit()
    before = files(first.folder)
    second = fit("--seed_everything=1")
    assert first.folder.parent == second.folder.parent
    assert files(first.folder) == before


def test_the_runs_own_config_repeats_the_run() -> None:
    first = fit("--trainer.gradient_clip_val=null", "--model.label_smoothing=0.3")
    assert main.main(["fit", "--config", str(first.config)]) == 0
    (second,) = (Run(folder) for folder in Path("runs/vip_rope").iterdir() if folder != first.folder)
    weights = [torch.load(run.last, weights_only=True)["state_dict"] for run in (first, second)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    configs = [yaml.safe_load(run.config.read_text()) for run in (first, second)]
    assert configs[0] == configs[1]
    assert configs[0]["trainer"]["gradient_clip_val"] is None


def test_a_trained_net_comes_back_in_python() -> None:
    run = fit(name="vit")
    module = ImageClassifier.load_from_checkpoint(run.best)
    assert module(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def die_in_the_third_epoch(module: ImageClassifier) -> None:
    if module.current_epoch == 2:
        raise InterruptedError


def test_a_resumed_run_equals_an_uninterrupted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.max_epochs=3", "--model.net.dropout=0.2", "--trainer.log_every_n_steps=1"]
    whole = fit(*options)
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_epoch_start", die_in_the_third_epoch)
        with pytest.raises(InterruptedError):
            main.main(["fit", *small(), *QUICK, *options])
    (parts,) = (Run(folder) for folder in Path("runs/vip_rope").iterdir() if folder != whole.folder)
    assert json.loads(parts.results.read_text())["finished"] is False
    assert main.main(["fit", "--ckpt_path", str(parts.folder)]) == 0
    weights = [torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, parts)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    tables = [(run.folder / "metrics.csv").read_text() for run in (whole, parts)]
    assert tables[0] == tables[1]
    best = [json.loads(run.results.read_text())["best"] for run in (whole, parts)]
    assert best[0] == best[1]


def test_the_command_line_beats_the_checkpoint_and_the_difference_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit()
    capsys.readouterr()
    changes = ["--trainer.max_epochs=2", "--model.optimizer.lr=0.25", "--model.schedule=null"]
    assert main.main(["fit", "--ckpt_path", str(run.folder), *changes]) == 0
    assert "model.optimizer.lr: 0.25 (in the checkpoint: 0.0015)" in capsys.readouterr().out
    state = torch.load(run.last, weights_only=True)
    assert state["epoch"] == 1
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--model.net.dim=32"], "model.net.dim: 32, but the net of .* has 16"),
        (system("vit"), r"vit\.yaml: model\.net\.class_path: vix\.ViT, but the net of .* has vix\.ViP"),
        (["--config", "other.yaml"], r"other\.yaml: model\.net\.position: learned, but the net of .* has rope"),
    ],
)
def test_another_net_than_the_checkpoints_is_refused(
    command: str, change: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.yaml").write_text("model: {net: {init_args: {position: learned}}}")
    run = fit()
    before = files()
    capsys.readouterr()
    assert main.main([command, "--ckpt_path", str(run.folder), *change]) == 2
    captured = capsys.readouterr()
    assert re.search(told, captured.err)
    assert files() == before


def test_an_offline_run_holds_its_config_and_metrics(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("WANDB_MODE")
    run = fit(*overlay("offline"), "--trainer.log_every_n_steps=1")
    (file,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    assert f"wandb sync {run.folder}/wandb" in capsys.readouterr().out
    config = wandb_file.config(file)
    assert config["model"]["net"]["init_args"]["num_classes"] == 10
    assert config["data"]["init_args"]["fraction"] == 0.1
    assert config["trainer"]["max_epochs"] == 1
    assert config["facts"]["parameters"] > 0
    assert config["facts"]["versions"]["torch"]
    assert not [key for key in config if "/" in key or "." in key]
    logged = wandb_file.history(file)
    assert {"train/loss", "val/top1", "val/loss", "lr", "trainer/global_step"} <= set().union(*logged)
    assert wandb_file.metrics(file)["*"] == "trainer/global_step"
    assert not [path for path in files() if not path.startswith(("runs", "data"))]


def test_the_test_split_is_not_opened_by_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules import Digits

    read = Digits.read
    opened: list[str] = []

    def watched(self: Digits, split: Any) -> Any:
        opened.append(split)
        return read(self, split)

    monkeypatch.setattr(Digits, "read", watched)
    run = fit()
    assert "train" in opened
    assert "test" not in opened
    assert main.main(["test", "--ckpt_path", str(run.folder)]) == 0
    assert "test" in opened


def test_a_whole_runs_log_fits_on_two_screens(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("--trainer.max_epochs=30")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) <= 20
    assert not captured.err
    assert re.search(r"parameters, .* tokens, .*FLOPs an image", lines[0])
    assert re.search(r"epoch 3/30 .* val/top1 .* images/s .* left", lines[1])
    assert [line.split()[0] for line in lines[-4:-2]] == ["best", "last"]
    assert str(run.folder) in lines[-2]
    assert lines[-1].endswith(f"python main.py test --ckpt_path {run.folder}")


def test_missing_data_exits_1_with_few_lines_and_nothing_left(capsys: pytest.CaptureFixture[str]) -> None:
    mirror = "--data.mirror=http://127.0.0.1:9"
    assert main.main(["fit", *small(), mirror]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 5
    assert "overlays/digits.yaml" in " ".join(lines)
    assert list(Path().iterdir()) == []


WRONG = {
    "misspelt key of the net": ("model: {net: {init_args: {dmi: 3}}}", [], ["wrong.yaml", "model.net.dmi", "dim"]),
    "misspelt key of the trainer": ("trainer: {max_epoch: 3}", [], ["wrong.yaml", "max_epoch", "trainer.max_epochs"]),
    "misspelt group": ("trainr: {max_epochs: 3}", [], ["wrong.yaml", "trainr", "trainer"]),
    "misspelt key of the data": ("data: {init_args: {batchsize: 3}}", [], ["wrong.yaml", "batchsize", "batch_size"]),
    "misspelt augmentation": ("data: {init_args: {augment: {flop: 1}}}", [], ["wrong.yaml", "flop", "flip"]),
    "misspelt key of the optimiser": ("model: {optimizer: {init_args: {lrr: 3}}}", [], ["wrong.yaml", "lrr", "lr?"]),
    "misspelt option": (None, ["--trainer.max_epoch=3"], ["command line", "max_epoch", "--trainer.max_epochs"]),
    "option without value": (None, ["--trainer.max_epochs"], ["--trainer.max_epochs needs a value"]),
    "wrong type": ("model: {net: {init_args: {dim: wide}}}", [], ["wrong.yaml", "model.net.dim", "int", "wide"]),
    "wrong type of the data": ("data: {init_args: {batch_size: x}}", [], ["wrong.yaml", "data.batch_size", "int", "x"]),
    "wrong choice": (
        "model: {net: {init_args: {position: ropee}}}",
        [],
        ["wrong.yaml", "position", "ropee", "rope_axial"],
    ),
    "wrong precision": ("trainer: {precision: bf}", [], ["wrong.yaml", "trainer.precision", "bf", "bf16-mixed"]),
    "group that is no mapping": ("trainer: 3", [], ["wrong.yaml", "trainer", "mapping", "3"]),
    "unknown net": (None, ["--model.net=VIP"], ["model.net", "VIP", "ViP"]),
    "unknown class path": ("model: {net: {class_path: vix.ViPP}}", [], ["wrong.yaml", "ViPP", "ViP?"]),
    "unknown module": ("model: {net: {class_path: vixx.ViP}}", [], ["wrong.yaml", "vixx"]),
    "unknown data": (None, ["--data=Digitz"], ["data", "Digitz", "Digits"]),
    "data as net": ("model: {net: {class_path: datamodules.Digits}}", [], ["wrong.yaml", "datamodules.Digits is no"]),
    "net without parameters": (None, ["--model.net=torch.nn.Identity"], ["Identity has no parameter"]),
    "missing file": (None, ["--config=wrongg.yaml"], ["wrongg.yaml", "no such file"]),
    "missing folder": (None, ["--config=no/vip.yaml"], ["no/vip.yaml", "no such file", "no folder no"]),
    "empty file": ("", [], ["wrong.yaml", "mapping", "empty"]),
    "words": ("just words", [], ["wrong.yaml", "mapping", "just words"]),
    "a list": ("[1, 2]", [], ["wrong.yaml", "mapping", "list"]),
    "broken YAML": ("model: [1, 2", [], ["wrong.yaml", "line 1", "not YAML"]),
    "not text": ("\x00\xff", [], ["wrong.yaml"]),
    "patch that does not divide": (
        "model: {net: {init_args: {patch_size: 3}}}",
        [],
        ["wrong.yaml", "patch_size", "3", "1, 2, 4, 8"],
    ),
    "odd head with RoPE": ("model: {net: {init_args: {dim_head: 7}}}", [], ["dim_head", "7", "multiple of 2"]),
    "classes against the data": (
        "model: {net: {init_args: {num_classes: 100}}}",
        [],
        ["wrong.yaml", "num_classes", "100", "10"],
    ),
    "channels against the data": ("model: {net: {init_args: {channels: 3}}}", [], ["wrong.yaml", "channels", "3", "1"]),
    "image size against the data": (
        None,
        ["--model.net.image_size=32"],
        ["command line", "image_size", "32", "(8, 8)"],
    ),
    "seed against the seed": (None, ["--data.seed=3"], ["command line", "data.seed", "3", "seed_everything"]),
    "share above one": ("model: {schedule: {init_args: {warmup: 2}}}", [], ["wrong.yaml", "warmup", "2", "0 to 1"]),
    "device that is not there": ("trainer: {accelerator: abacus}", [], ["wrong.yaml", "trainer.accelerator", "abacus"]),
}


@pytest.mark.parametrize(("content", "extra", "told"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_refused_in_few_words_that_help(
    content: str | None, extra: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("wrong.yaml").write_text(content, encoding="latin-1")
        extra = ["--config", "wrong.yaml", *extra]
    before = files()
    assert main.main(["fit", *system("vip_rope"), *overlay("digits"), *extra]) == 2
    captured = capsys.readouterr()
    assert 1 <= len(captured.err.splitlines()) <= 5
    assert "Traceback" not in captured.err
    assert "usage" not in captured.err
    for words in told:
        assert words in captured.err
    assert files() == before


def test_an_overlay_for_the_net_before_the_systems_yaml_is_told_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wide.yaml").write_text("model: {net: {init_args: {dim: 64}}}")
    assert main.main(["fit", "--config", "wide.yaml", *system("vip")]) == 2
    assert "wide.yaml: model.net.dim: no net is chosen yet at this point; give it after" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fit"], "python main.py fit --config experiments/vip_rope.yaml"),
        (["test"], "test needs --ckpt_path"),
        (["ftt"], "did you mean fit?"),
        (["test", "--ckpt_path", "nowhere"], "--ckpt_path nowhere: no such file or folder"),
        (["fit", "--ckpt_path", "."], "no checkpoint there"),
    ],
)
def test_an_incomplete_command_is_told_what_it_lacks(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_the_whole_story_is_told_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    assert main.main(["fit", *system("vip"), "--model.net.dmi=3"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_lists_the_commands_without_loading_torch() -> None:
    script = "import sys, main; assert main.main(['--help']) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=EXPERIMENTS.parent, capture_output=True, text=True, check=True
    )
    assert all(command in done.stdout for command in main.TRAINER)


@pytest.mark.slow
def test_two_processes_share_one_run() -> None:
    command = [sys.executable, str(EXPERIMENTS.parent / "main.py"), "fit", *small(), *QUICK, *overlay("two_gpus")]
    subprocess.run([*command, "--trainer.accelerator=cpu"], check=True, capture_output=True, text=True, timeout=300)
    (folder,) = Path("runs/vip_rope").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["device"]["processes"] == 2
    assert results["finished"] is True
    assert main.main(["test", "--ckpt_path", str(folder)]) == 0


def test_a_loss_chooses_the_epoch_where_it_is_lowest() -> None:
    small = [f"--model.net.{name}={SIZES[name]}" for name in ("dim", "depth", "heads", "dim_head", "mlp_dim")]
    budget = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=4", "--monitor=val/loss"]
    assert main.main(["fit", *system("vit"), *overlay("digits"), *small, *budget]) == 0
    (results,) = Path("runs/vit").glob("*/results.json")
    with (results.parent / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]
    best = json.loads(results.read_text(encoding="utf-8"))["best"]
    assert len(losses) == 3
    assert best["val/loss"] == pytest.approx(min(losses))
    assert best["epoch"] == losses.index(min(losses)) + 1


def test_without_a_score_to_choose_by_the_last_epoch_is_the_best() -> None:
    small = [f"--model.net.{name}={SIZES[name]}" for name in ("dim", "depth", "heads", "dim_head", "mlp_dim")]
    # at such a rate no epoch is better than the one before
    budget = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=4", "--model.optimizer.lr=1", "--monitor=null"]
    assert main.main(["fit", *system("vit"), *overlay("digits"), *small, *budget]) == 0
    (path,) = Path("runs/vit").glob("*/results.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["best"] == results["last"]
    assert results["best"]["epoch"] == 3
    assert "`best` is the final epoch" in results["protocol"]
    checkpoints = path.parent / "checkpoints"
    assert (checkpoints / "best.ckpt").read_bytes() == (checkpoints / "last.ckpt").read_bytes()

"""The command `swap`: three accuracies, a run that the other commands accept, and short refusals."""

from pathlib import Path

import pytest
import torch
import yaml

import main
from vix.training import ImageClassifier
from vix.training.files import read_json

EXPERIMENTS = Path(main.__file__).parent / "experiments"
DIGITS = str(EXPERIMENTS / "overlays" / "digits.yaml")
TINY = ["--model.net.dim=16", "--model.net.depth=2", "--model.net.heads=2", "--model.net.dim_head=8"]
SHORT = ["--trainer.max_epochs=1", "--data.fraction=0.2", "--model.net.patch_size=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swap")
    config = ["--config", str(EXPERIMENTS / "vit.yaml"), "--config", DIGITS, "--wandb.mode=disabled"]
    assert main.main(["fit", *config, *TINY, *SHORT, "--runs", str(folder)]) == 0
    (run,) = (folder / "vit").iterdir()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted((EXPERIMENTS / "swap").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_swap_makes_a_run_with_three_accuracies(recipe: Path, trained: Path, tmp_path: Path) -> None:
    command = ["swap", "--ckpt_path", str(trained), "--config", str(recipe), "--epochs", "1", "--runs", str(tmp_path)]
    assert main.main([*command, "--test"]) == 0
    (run,) = (path for folder in tmp_path.iterdir() for path in folder.iterdir())
    swap = read_json(run / "results.json")["swap"]
    for when in ("before", "after", "fine_tuned"):
        assert set(swap[when]) == {"validation", "test"}
        assert 0 < swap[when]["validation"] <= 1
    assert main.main(["test", "--ckpt_path", str(run)]) == 0
    tested = read_json(run / "results.json")
    assert tested["test"]["test/top1"] == pytest.approx(swap["fine_tuned"]["test"])
    kernel = yaml.safe_load(recipe.read_text())["attention"]["class_path"]
    loaded = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    assert loaded.hparams["net"]["init_args"]["attention"]["class_path"] == kernel
    assert loaded.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.slow
def test_only_some_layers_are_swapped_where_it_is_asked(trained: Path, tmp_path: Path) -> None:
    command = ["swap", "--ckpt_path", str(trained), "--config", str(EXPERIMENTS / "swap" / "performer.yaml")]
    assert main.main([*command, "--layers", "1", "--epochs", "1", "--runs", str(tmp_path)]) == 0
    (run,) = (path for folder in tmp_path.iterdir() for path in folder.iterdir())
    state = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt").state_dict()
    assert [name for name in state if name.endswith("attention.projection")] == [
        "net.net.blocks.1.mixer.attention.projection"
    ]


@pytest.mark.slow
def test_a_net_without_softmax_attention_is_refused_in_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(EXPERIMENTS / "vip.yaml"), "--config", DIGITS, "--wandb.mode=disabled"]
    assert main.main(["fit", *config, *TINY, *SHORT, "--runs", str(tmp_path)]) == 0
    (run,) = (tmp_path / "vip").iterdir()
    capsys.readouterr()
    command = ["swap", "--ckpt_path", str(run), "--config", str(EXPERIMENTS / "swap" / "nystrom.yaml")]
    assert main.main([*command, "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "ViP has no softmax attention to swap" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["vip"]


def test_a_recipe_that_is_none_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, words in {
        "attention: {class_path: vix.Performer}\nlayer: [0]\n": "layer: no setting of a swap; did you mean layers?",
        "epochs: 2\n": "attention: expected class_path",
        "attention: {class_path: vix.Performer}\nepochs: 0\n": "epochs: must be a positive whole number, got 0",
    }.items():
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        assert main.main(["swap", "--ckpt_path", str(tmp_path), "--config", str(recipe)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1

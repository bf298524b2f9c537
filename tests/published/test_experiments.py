"""The authors' own settings, whole: one YAML a published system, of which the shared recipe changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vix
from main import main
from tests.archives import Archive
from vix.measure import parameters
from vix.published import ORIGINALS, Original
from vix.spec import class_path, describe
from vix.training import ImageClassifier

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = sorted((EXPERIMENTS / "published").glob("*.yaml"))

# Batch and epochs of each script; FNet2D came without one.
TRAINED = {
    "ViT": (64, 40),
    "ViL": (256, 40),
    "ViP": (128, 40),
    "ViN": (128, 40),
    "FNet": (512, 100),
    "HybridViT": (64, 40),
    "HybridViL": (256, 40),
    "HybridViP": (128, 40),
    "HybridViN": (128, 40),
    "HybridFNet": (512, 100),
    "ViTRoPE": (64, 40),
    "ViLRoPE": (320, 40),
    "ViPRoPE": (192, 40),
    "ViNRoPE": (192, 40),
    "HybridViTRoPE": (64, 40),
    "HybridViLRoPE": (256, 40),
    "HybridViPRoPE": (192, 40),
    "HybridViNRoPE": (192, 40),
    "MLPMixer": (640, 40),
    "HybridMLPMixer": (640, 40),
    "FNet2D": (512, 100),
    "CCT": (48, 40),
    "CCN": (160, 150),
    "CCP": (160, 150),
    "CvN": (160, 150),
    "CvP": (160, 150),
    "LeViN": (192, 150),
    "LeViP": (192, 150),
}
# Trainable values of the originals.
PARAMETERS = {
    "ViT": 661_770,
    "ViL": 809_482,
    "ViP": 663_306,
    "ViN": 662_298,
    "FNet": 399_114,
    "HybridViT": 754_506,
    "HybridViL": 951_370,
    "HybridViP": 756_042,
    "HybridViN": 755_034,
    "HybridFNet": 491_850,
    # Without the 131,200 values of positions that four originals held and never read.
    "ViTRoPE": 661_770 - 131_200,
    "ViLRoPE": 858_634 - 131_200,
    "HybridViTRoPE": 754_506 - 131_200,
    "HybridViLRoPE": 951_370 - 131_200,
    "ViPRoPE": 532_106,
    "ViNRoPE": 531_098,
    "HybridViPRoPE": 624_842,
    "HybridViNRoPE": 623_834,
    "MLPMixer": 8_558_664,
    "HybridMLPMixer": 8_650_248,
    "FNet2D": 407_818,
    "CCT": 1_061_129,
    "CCN": 1_061_657,
    "CCP": 1_062_665,
    "CvN": 854_232,
    "CvP": 855_240,
    "LeViN": 645_912,
    "LeViP": 646_920,
}


def original_of(file: Path) -> Original:
    """hybrid_vin_rope.yaml -> HybridViNRoPE."""
    name = file.stem.replace("_", "")
    return next(original for system, original in ORIGINALS.items() if system.lower() == name)


def on_tiny_imagenet(file: Path) -> bool:
    return original_of(file).family in ("mixer", "cct", "cvt", "levit")


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def keys(content: Any, above: str = "") -> set[str]:
    if not isinstance(content, dict) or not content:
        return {above}
    return {key for name, value in content.items() for key in keys(value, f"{above}.{name}")}


def test_there_is_one_file_for_each_published_system() -> None:
    assert {original_of(file).system for file in FILES} == set(TRAINED)
    assert set(TRAINED) == {system for system in ORIGINALS if not system.startswith("pip_")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_is_inherited_from_the_recipe(file: Path) -> None:
    inherited = keys(read(EXPERIMENTS / "defaults.yaml")) - keys(read(file))
    # A file that sets the schedule to nothing leaves nothing of the recipe's.
    assert {key for key in inherited if not key.startswith(".model.schedule.")} == set()
    assert read(file)["model"]["schedule"] is None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_net_is_what_its_author_trained(file: Path) -> None:
    original, net = original_of(file), read(file)["model"]["net"]
    linked = ("image_size", "num_classes", "channels")
    expected = describe(original.init_args(original.script))
    facts = {name: expected.pop(name) for name in linked if name in expected}
    if expected.get("features", 0) is None:
        expected["features"] = 110
    if original.family == "mixer":
        expected["patch_size"] = 2
    assert net["class_path"] == class_path(original.net)
    assert net["init_args"] == expected
    built = vix.build({**net, "init_args": {**net["init_args"], **facts}})
    assert parameters(built) == PARAMETERS[original.system]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_recipe_is_its_authors(file: Path) -> None:
    system, content = original_of(file).system, read(file)
    data, trainer = content["data"]["init_args"], content["trainer"]
    assert (data["batch_size"], trainer["max_epochs"]) == TRAINED[system]
    assert content["data"]["class_path"] == f"datamodules.{'TinyImageNet' if on_tiny_imagenet(file) else 'CIFAR10'}"
    assert not any(data["augment"].values())
    mean, std = ([122.4786, 114.2755, 101.3963], [70.4924, 68.5679, 71.8127])
    if not on_tiny_imagenet(file):
        mean, std = [127.5] * 3, [127.5] * 3
    assert data["mean"] == pytest.approx([value / 255 for value in mean], abs=1e-7)
    assert data["std"] == pytest.approx([value / 255 for value in std], abs=1e-7)
    assert content["model"]["optimizer"]["init_args"] == {
        "lr": 1e-3,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "amsgrad": False,
    }


def test_everything_decays() -> None:
    net = vix.ViT(dim=8, depth=1, image_size=4)
    (group,) = ImageClassifier(net, decay_all=True).configure_optimizers().param_groups
    assert len(group["params"]) == len(list(net.parameters()))
    assert len(ImageClassifier(net).configure_optimizers().param_groups) == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_trains_a_step(file: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    archive: Archive = request.getfixturevalue("tiny_imagenet" if on_tiny_imagenet(file) else "cifar10")
    data = [f"--data.{name}={value}" for name, value in archive.init_args.items()]
    smoke = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--data.batch_size=2"]
    # Of most one block is enough, and quicker.
    smoke += ["--model.net.depth=1"] if original_of(file).family not in ("cvt", "levit") else []
    torch.manual_seed(0)
    assert main(["fit", "--config", str(file), *data, *smoke, f"--runs={tmp_path}"]) == 0

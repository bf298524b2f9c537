"""timm makes, uses and takes apart our systems as it does its own."""

from pathlib import Path

import pytest
import timm
import timm.data
import timm.optim
import torch

import vix
import vix.timm
from vix.spec import parameters_of

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL = {"img_size": 16, "num_classes": 5}
NAMES = sorted(vix.timm.systems())
with_every_name = pytest.mark.parametrize("name", NAMES)


def test_the_names_are_those_of_the_experiments() -> None:
    files = {path.stem for path in EXPERIMENTS.glob("*.yaml")} - {"defaults"}
    assert {name.removeprefix("vix_") for name in NAMES} == files


@with_every_name
def test_timm_lists_and_makes_it(name: str) -> None:
    assert timm.list_models(name) == [name]
    model = timm.create_model(name, in_chans=1, **SMALL).eval()
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    assert timm.data.resolve_data_config(model=model)["input_size"] == (1, 16, 16)


@with_every_name
def test_timms_way_to_features_and_heads_works(name: str) -> None:
    model = timm.create_model(name, **SMALL).eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    vector = model.forward_head(features, pre_logits=True)
    assert vector.shape == (2, model.num_features)
    torch.testing.assert_close(model.get_classifier()(vector), model(x))
    headless = timm.create_model(name, **{**SMALL, "num_classes": 0}).eval()
    assert headless(x).shape == (2, model.num_features)
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()
    model.set_grad_checkpointing()
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)


@with_every_name
def test_timms_optimiser_spares_what_must_not_decay(name: str) -> None:
    model = timm.create_model(name, **SMALL)
    optimiser = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    spared = {id(each) for group in optimiser.param_groups if not group["weight_decay"] for each in group["params"]}
    assert {id(model.get_parameter(path)) for path in model.no_weight_decay()} <= spared


def test_timms_words_are_ours() -> None:
    model = timm.create_model("vix_vip_rope", drop_rate=0.1, drop_path_rate=0.2, features=32, **SMALL)
    made = model.spec["init_args"]
    assert made == {
        "position": "rope",
        "dropout": 0.1,
        "drop_path": 0.2,
        "features": 32,
        "image_size": 16,
        "num_classes": 5,
    }
    assert set(made) <= set(parameters_of(vix.ViP))


def test_what_there_is_not_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="vix_vip has no pretrained weights"):
        timm.create_model("vix_vip", pretrained=True)
    with pytest.raises(ValueError, match="image_size is given twice, once as img_size"):
        timm.create_model("vix_vip", image_size=16, img_size=16)
    with pytest.raises(TypeError, match="ViP takes no global_pool"):
        timm.create_model("vix_vip", global_pool="avg")


def test_weights_in_a_file_are_loaded_by_timm(tmp_path: Path) -> None:
    model = timm.create_model("vix_vin", **SMALL).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    again = timm.create_model("vix_vin", checkpoint_path=tmp_path / "weights.pth", **SMALL).eval()
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)

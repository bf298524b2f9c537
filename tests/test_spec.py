"""A net remembers what it was made of, in plain types, and can be made again; specs of strangers are refused."""

import functools
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import vix
from tests.nets import images, tiny
from vix.spec import describe, parameters_of

SMALL = {"image_size": 8, "dim": 8, "depth": 1, "mlp_dim": 8}


def test_a_spec_has_the_arguments_that_were_given_and_no_others() -> None:
    net = vix.ViP(**SMALL, position="rope", features=7)
    assert net.spec == {"class_path": "vix.ViP", "init_args": {**SMALL, "position": "rope", "features": 7}}


@pytest.mark.parametrize("name", vix.SYSTEMS)
def test_a_net_built_from_its_spec_has_the_same_weights_by_name_and_shape(name: str) -> None:
    net = tiny(vix.SYSTEMS[name], image_size=(16, 24), channels=1, num_classes=3)
    # As a YAML or a checkpoint would carry it.
    spec = json.loads(json.dumps(net.spec))
    again = vix.build(spec)
    assert type(again) is type(net)
    assert again.spec == spec
    shapes, shapes_again = ({key: tuple(x.shape) for key, x in of.state_dict().items()} for of in (net, again))
    assert shapes == shapes_again
    again.load_state_dict(net.state_dict())
    assert_close(again.eval()(images(net)), net.eval()(images(net)), rtol=0, atol=0)


def test_a_partial_and_a_class_are_specs_of_their_own() -> None:
    attention = functools.partial(vix.Linformer, rank=3)
    assert describe([vix.Performer, attention, (1, 2)]) == [
        {"class_path": "vix.Performer"},
        {"class_path": "vix.Linformer", "init_args": {"rank": 3}},
        [1, 2],
    ]
    net = vix.build(json.loads(json.dumps(vix.ViT(**SMALL, attention=attention).spec)))
    kernels = [module for module in net.modules() if isinstance(module, vix.Attention)]
    assert [tuple(kernel.project_keys.shape) for kernel in kernels] == [(65, 3)]


def test_free_composition_of_body_and_mixer_has_a_spec_too() -> None:
    mixer = functools.partial(vix.mixers.SelfAttention, heads=2, dim_head=4, attention=vix.Performer)
    net = vix.backbones.VisionTransformer(mixer=mixer, **SMALL)
    again = vix.build(net.spec)
    assert again.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("value", [nn.ReLU(), lambda spec: None, functools.partial(vix.Linformer, 3), torch.zeros(1)])
def test_what_cannot_be_written_is_an_error_that_says_what_can(value: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be written in a spec: give a class or functools\.partial"):
        describe(value)


@pytest.mark.parametrize(
    "path",
    ["os.system", "subprocess.Popen", "torch.nn.Linear", "vixen.Evil", "vix_evil.Net", "builtins.eval", "", "vix"],
)
def test_class_paths_of_others_are_refused_before_anything_is_imported(path: str) -> None:
    with pytest.raises(ValueError, match="is outside vix") as error:
        vix.build({"class_path": path, "init_args": {}})
    assert "\n" not in str(error.value)


def test_class_paths_inside_a_spec_are_refused_as_well() -> None:
    inner = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    for init_args in (
        {"attention": inner},
        {"attention": {"class_path": "vix.Linformer", "init_args": {"rank": inner}}},
    ):
        with pytest.raises(ValueError, match=r"'subprocess\.Popen' is outside vix"):
            vix.build({"class_path": "vix.ViT", "init_args": {**SMALL, **init_args}})


def test_trusted_paths_of_others_are_built() -> None:
    net = vix.build(
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}, trusted=("torch.nn.",)
    )
    assert isinstance(net, nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"class_path": "vix.Nothing"}, r"'vix\.Nothing' names no class"),
        ({"class_path": "vix.nowhere.Net"}, r"'vix\.nowhere\.Net' names no class"),
        ({"class_path": "vix.spec.Mapping"}, r"'vix\.spec\.Mapping' names no class"),
        ({"class_path": "vix.systems.partial"}, r"'vix\.systems\.partial' names no class"),
        ({"class_path": "vix.build"}, r"'vix\.build' names no class"),
        ({"class_path": "vix.AttentionSpec"}, r"'vix\.AttentionSpec' names no net"),
        ({"init_args": {}}, "class_path"),
    ],
)
def test_a_spec_that_names_no_net_is_an_error_in_one_line(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        vix.build(spec)
    assert "\n" not in str(error.value)


def test_arguments_of_the_bases_are_known_and_settled_ones_are_not() -> None:
    names = parameters_of(vix.HybridViP)
    assert {"features", "position", "heads", "image_size", "drop_path"} <= set(names)
    assert not {"attention", "mixer", "embedding"} & set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_sise": 8}, r"^ViP takes no image_sise=8; did you mean image_size\? It takes features, "),
        ({"attention": vix.Linformer}, "^ViP takes no attention="),
        ({"zzz": None}, "^ViP takes no zzz=None; It takes|^ViP takes no zzz=None; it takes"),
    ],
)
def test_unknown_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as error:
        vix.ViP(**arguments)
    assert "\n" not in str(error.value)


def test_a_subclass_of_ones_own_keeps_its_spec() -> None:
    class Mine(vix.ViT):
        def __init__(self, *, width: int = 8, **vit: Any) -> None:
            super().__init__(dim=width, **vit)

    net = Mine(width=4, image_size=8, depth=1)
    assert net.spec["init_args"] == {"width": 4, "image_size": 8, "depth": 1}
    assert net.spec["class_path"].startswith(__name__)


def test_changing_what_was_given_does_not_change_the_spec() -> None:
    size = [8, 16]
    net = vix.ViT(**{**SMALL, "image_size": size})
    size[0] = 999
    net.spec["init_args"]["dim"] = 999
    assert net.spec["init_args"] == {**SMALL, "image_size": [8, 16]}

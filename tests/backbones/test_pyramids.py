"""What holds for all nets with the bodies LeViT, CvT and CCT, whatever their attention."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vix
from vix.backbones import CCT, Backbone, CvT, LeViT
from vix.measure import parameters
from vix.systems import SYSTEMS

PYRAMIDS = [system for system in SYSTEMS.values() if issubclass(system, LeViT | CvT | CCT)]
LINFORMERS: list[tuple[type[Backbone], dict[str, Any]]] = [(LeViT, {"position": "values"}), (CvT, {}), (CCT, {})]
TINY: dict[type[Backbone], dict[str, Any]] = {
    LeViT: {"dim": (16, 24), "depth": (1, 1), "heads": (2, 3), "dim_head": 8},
    CvT: {"dim": (8, 16), "depth": (1, 1), "heads": (1, 2), "dim_head": 8, "mlp_ratio": 2},
    CCT: {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8},
}
names = pytest.mark.parametrize("system", PYRAMIDS, ids=lambda system: system.__name__)
bodies = pytest.mark.parametrize("body", list(TINY), ids=lambda body: body.__name__)


def tiny(system: type[Backbone], **arguments: Any) -> Backbone:
    torch.manual_seed(0)
    sizes = next(sizes for body, sizes in TINY.items() if issubclass(system, body))
    return shake(system(**{"image_size": 16, **sizes, **arguments}))


@torch.no_grad()
def shake(net: Backbone) -> Backbone:
    """Gives BatchNorm statistics as after training, and weight to the branches that start as nothing."""
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean") or (name.endswith("norm.weight") and value.ndim == 1):
            value.add_(0.3 * torch.randn_like(value))
        elif name.endswith("bias.table"):
            value.normal_()
    return net


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_there_are_nine() -> None:
    assert [system.__name__ for system in PYRAMIDS] == [
        "LeViT",
        "LeViN",
        "LeViP",
        "CvT",
        "CvN",
        "CvP",
        "CCT",
        "CCN",
        "CCP",
    ]


@names
@pytest.mark.parametrize(("side", "classes"), [(32, 10), (64, 200)])
def test_the_defaults_have_the_published_range_of_parameters_and_1024_tokens(
    system: type[Backbone], side: int, classes: int
) -> None:
    net = system(image_size=side, num_classes=classes)
    assert 0.6e6 < parameters(net) < 1.1e6
    assert net.tokens.count == 1024


@names
@pytest.mark.parametrize(
    "size", [(8, 8), (9, 31), (24, 40), (48, 48), (33, 47)], ids=lambda size: f"{size[0]}x{size[1]}"
)
@torch.no_grad()
def test_any_side_from_eight_pixels_works(system: type[Backbone], size: tuple[int, int]) -> None:
    net = tiny(system, image_size=size).eval()
    logits = net(images(2, 3, *size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@names
def test_smaller_sides_are_refused_by_name(system: type[Backbone]) -> None:
    with pytest.raises(ValueError, match="image_size must be at least 8 pixels on each side, got 7x32"):
        system(image_size=(7, 32))
    with pytest.raises(ValueError, match="image_size must be at least 8 pixels on each side, got 16x7"):
        tiny(system)(images(1, 3, 16, 7))


@names
def test_digits_of_eight_pixels_and_one_channel_train_from_the_defaults(system: type[Backbone]) -> None:
    net = system(image_size=8, channels=1)
    net(images(2, 1, 8, 8)).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in net.parameters())


@names
@torch.no_grad()
def test_loud_batch_mates_change_nothing(system: type[Backbone]) -> None:
    net = tiny(system).eval()
    one = images(1, 3, 16, 16)
    together = net(torch.cat([one, 100 * images(3, 3, 16, 16, seed=2)]))[:1]
    alone = net(one)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * alone.abs().max().item())


@names
@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_gets_a_finite_gradient_even_from_one_image(system: type[Backbone], batch: int) -> None:
    net = tiny(system, image_size=8)
    net(images(batch, 3, 8, 8)).square().sum().backward()
    for name, value in net.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name


@names
@torch.no_grad()
def test_half_precision_stays_near_full_precision(system: type[Backbone]) -> None:
    net = tiny(system).eval()
    expected = net(images(2, 3, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images(2, 3, 16, 16))
    # bfloat16 keeps 8 bits, and each layer loses some of the last.
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.1 * expected.abs().max().item())


@names
def test_a_spec_makes_the_same_net(system: type[Backbone]) -> None:
    net = tiny(system)
    again = vix.build(net.spec)
    assert type(again) is system
    assert again.spec == net.spec
    again.load_state_dict(net.state_dict())


@names
def test_recomputing_blocks_changes_neither_gradients_nor_statistics(system: type[Backbone]) -> None:
    kept = tiny(system, drop_path=0.0)
    recomputed = copy.deepcopy(kept)
    recomputed.set_grad_checkpointing()
    for net in (kept, recomputed):
        net(images(3, 3, 16, 16)).square().sum().backward()
    for (name, one), two in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in kept.named_buffers():
        torch.testing.assert_close(dict(recomputed.named_buffers())[name], value, rtol=0, atol=0)


@names
def test_a_new_classifier_has_the_new_classes(system: type[Backbone]) -> None:
    net = tiny(system)
    net.reset_classifier(7)
    assert net(images(2, 3, 16, 16)).shape == (2, 7)
    assert net.spec["init_args"]["num_classes"] == 7


@names
def test_features_and_head_make_the_logits(system: type[Backbone]) -> None:
    net = tiny(system).eval()
    features = net.forward_features(images(2, 3, 16, 16))
    assert features.shape[-1] == net.num_features
    torch.testing.assert_close(net.forward_head(features), net(images(2, 3, 16, 16)))


@names
def test_only_parameters_of_the_net_are_kept_from_decay(system: type[Backbone]) -> None:
    net = tiny(system)
    expected = {name for name, _ in net.named_parameters() if name.endswith((".table", "class_token"))}
    assert net.no_weight_decay() == expected


@pytest.mark.parametrize(("body", "options"), LINFORMERS, ids=lambda value: getattr(value, "__name__", ""))
def test_linformer_costs_no_class_of_its_own(body: type[Backbone], options: dict[str, Any]) -> None:
    net = tiny(body, attention=vix.Linformer, **options)
    assert net(images(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="built for"):
        net(images(2, 3, 24, 16))
    vix.build(net.spec).load_state_dict(net.state_dict())


ANY_SIZE: list[tuple[type[Backbone], dict[str, Any]]] = [
    *((system, {}) for system in (vix.LeViN, vix.LeViP, vix.CvT, vix.CvN, vix.CvP)),
    *((vix.CCT, {"position": position}) for position in ("sine", "rope", "none")),
    (vix.CCN, {"position": "rope"}),
    (vix.CCP, {"position": "rope_axial"}),
]


@pytest.mark.parametrize(("system", "options"), ANY_SIZE)
@torch.no_grad()
def test_another_size_works_where_nothing_depends_on_length(system: type[Backbone], options: dict[str, Any]) -> None:
    net = tiny(system, **options).eval()
    other = tiny(system, **options, image_size=(24, 17)).eval()
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(images(2, 3, 24, 17)), other(images(2, 3, 24, 17)))


@pytest.mark.parametrize("system", [vix.LeViT, vix.CCT, vix.CCN, vix.CCP])
def test_another_size_is_refused_with_both_sizes_where_a_table_depends_on_it(system: type[Backbone]) -> None:
    with pytest.raises(ValueError, match=r"built for 256 tokens \(16x16\), got 384 tokens \(24x16\)"):
        tiny(system)(images(1, 3, 24, 16))


@bodies
def test_an_unknown_preset_is_refused_with_the_known_ones(body: type[Backbone]) -> None:
    with pytest.raises(ValueError, match=f"{body.__name__} has no preset '99': it has {next(iter(body.presets))}"):
        body.preset("99")


@pytest.mark.parametrize("system", [vix.LeViN, vix.LeViP, vix.CvN, vix.CvP])
def test_a_preset_is_a_size_whatever_the_attention(system: type[Backbone]) -> None:
    name = next(iter(system.presets))
    with torch.device("meta"):
        net = system.preset(name, num_classes=7)
    assert net.spec["class_path"] == f"vix.{system.__name__}"
    assert net.spec["init_args"]["num_classes"] == 7
    assert net.image_size == (224, 224)


@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        (LeViT, {"stem_stride": 3}, "stem_stride must be a power of two, got 3"),
        (LeViT, {"dim": (30, 60, 90)}, "multiple of 4"),
        (LeViT, {"dim": (8, 16, 16), "dim_head": 16}, "dim_head must be at most the smallest dim, 8, got 16"),
        (LeViT, {"heads": (2, 3)}, r"heads must be a positive whole number, or 3 of them"),
        (LeViT, {"position": "rope"}, "position must be one of bias, values, none, got 'rope'"),
        (CvT, {"depth": (1, 0, 1)}, "depth must be a positive whole number, or 3 of them"),
        (CvT, {"pool": "max"}, "pool must be one of cls, mean, got 'max'"),
        (CvT, {"stride": 4, "image_size": 8}, "a stride of 4 leaves no token of a map of 2x2"),
        (CvT, {"kv_stride": 0}, "kv_stride must be a positive whole number, got 0"),
        (CCT, {"kernel": 4}, "kernel must be odd, got 4"),
        (CCT, {"stride": (4, 1)}, "stride 4 skips pixels of a 3x3 kernel"),
        (CCT, {"position": "bias"}, "position must be one of learned, sine, rope, rope_axial, none, got 'bias'"),
        (CCT, {"depth": 0}, "depth must be a positive whole number, got 0"),
    ],
)
def test_impossible_arguments_are_refused_by_name(
    body: type[nn.Module], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        body(**arguments)


@names
def test_a_misspelt_argument_is_refused_by_name(system: type[Backbone]) -> None:
    with pytest.raises(TypeError, match=f"{system.__name__} takes no depht=2; did you mean depth"):
        system(depht=2)

"""What every named system promises, whatever its body and mixer: held for all of `vix.SYSTEMS`."""

import copy
import io
import os
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import vix
from tests.nets import images, systems_with, tiny
from vix.backbones import Backbone, VisionTransformer
from vix.measure import bytes_kept, count_flops
from vix.mixers import MLPMixing
from vix.positions import LearnedPosition
from vix.spec import parameters_of

# Each system as it comes, and the plain ones with each of the other positions.
VARIANTS = {name: (system, {}) for name, system in vix.SYSTEMS.items()} | {
    f"{name} {position}": (system, {"position": position})
    for name, system in vix.SYSTEMS.items()
    for position in ("rope", "rope_axial", "none")
    if issubclass(system, vix.ViT) and "Hybrid" not in name
}

with_every_system = pytest.mark.parametrize("name", vix.SYSTEMS)
with_every_variant = pytest.mark.parametrize(("system", "options"), VARIANTS.values(), ids=VARIANTS)


def worst(actual: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest expected value."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def gradients(net: Backbone, batch: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Gradients of all parameters, with what is random in the forward seeded."""
    net.zero_grad()
    torch.manual_seed(seed)
    net(batch).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def with_crowd(net: Backbone, amplitude: float = 100.0) -> tuple[Tensor, Tensor]:
    """Logits of an image alone, and of the same image beside mates of a larger amplitude (on both sides)."""
    image = images(net, 1)
    mates = amplitude * images(net, 4, seed=1)
    with torch.no_grad():
        return net(image), net(torch.cat([mates[:2], image, mates[2:]]))[2:3]


@with_every_variant
def test_logits_do_not_depend_on_batch_mates(system: type[Backbone], options: dict[str, Any]) -> None:
    alone, crowd = with_crowd(tiny(system, image_size=(9, 11), **options).eval())
    assert worst(crowd, alone) < 1e-5


@pytest.mark.slow
@with_every_system
def test_logits_do_not_depend_on_batch_mates_at_the_default_sizes(name: str) -> None:
    torch.manual_seed(0)
    alone, crowd = with_crowd(vix.SYSTEMS[name]().eval())
    assert worst(crowd, alone) < 1e-5


SHAPES = {
    "32x32, three channels": {"image_size": 32},
    "32x32, one channel": {"image_size": (32, 32), "channels": 1},
    "33x47, four channels": {"image_size": (33, 47), "patch_size": 1, "channels": 4},
    "64x32, one channel": {"image_size": (64, 32), "channels": 1},
    "24x40, three channels": {"image_size": [24, 40], "channels": 3},
    "8x9, two classes": {"image_size": (8, 9), "num_classes": 2},
}


@with_every_system
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_image_gives_logits_and_every_parameter_a_finite_gradient(name: str, shape: dict[str, Any]) -> None:
    system = vix.SYSTEMS[name]
    shape = {argument: value for argument, value in shape.items() if argument in parameters_of(system)}
    net = tiny(system, **shape)
    batch = images(net).requires_grad_()
    logits = net(batch)
    assert logits.shape == (2, net.num_classes)
    logits.square().sum().backward()
    for argument, parameter in (("the images", batch), *net.named_parameters()):
        assert parameter.grad is not None, argument
        assert parameter.grad.isfinite().all(), argument


@with_every_system
def test_defaults_are_enough(name: str) -> None:
    net = vix.SYSTEMS[name](image_size=8, num_classes=7)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 7)
    assert net.image_size == (8, 8)
    assert (net.num_classes, net.channels) == (7, 3)
    assert net.forward_features(torch.randn(1, 3, 8, 8)).isfinite().all()


@with_every_variant
def test_bfloat16_autocast_stays_near_float32(system: type[Backbone], options: dict[str, Any]) -> None:
    net = tiny(system, **options).eval()
    batch = images(net, 4)
    with torch.no_grad():
        expected = net(batch)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(batch)
    # One rounding is 2^-8 = 0.004 of a value, and a small net has some twenty in a row; measured over 8 seeds: 0.005 to
    # 0.018 (ViN, through its inverse).
    assert worst(logits, expected) < 0.04


@with_every_system
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_whole_net_can_change_its_precision(name: str, dtype: torch.dtype) -> None:
    net = tiny(vix.SYSTEMS[name]).eval()
    expected, batch = net(images(net)), images(net)
    logits = net.to(dtype)(batch.to(dtype))
    assert logits.dtype == dtype
    assert worst(logits, expected) < (0.2 if dtype == torch.bfloat16 else 1e-4)


def depends_on_length(net: Backbone) -> bool:
    """Whether a part of a ViT body was made for one number of tokens."""
    return any(isinstance(module, vix.Linformer | MLPMixing | LearnedPosition) for module in net.modules())


@with_every_variant
@pytest.mark.parametrize("size", [(20, 12), (12, 12)], ids=["larger", "smaller"])
def test_another_size_gives_what_a_net_of_that_size_gives_or_an_error_that_names_both(
    system: type[Backbone], options: dict[str, Any], size: tuple[int, int]
) -> None:
    net, other = (tiny(system, image_size=side, **options).eval() for side in (14, size))
    batch = images(other)
    try:
        logits = net(batch)
    except ValueError as error:
        message = str(error)
        assert "built for" in message
        assert str(net.tokens.count) in message or not isinstance(net, VisionTransformer)
        assert str(other.tokens.count) in message or not isinstance(net, VisionTransformer)
        assert "\n" not in message
        worked = False
    else:
        other.load_state_dict(net.state_dict())
        assert_close(logits, other(batch))
        worked = True
    if isinstance(net, VisionTransformer):
        assert worked is not depends_on_length(net)


@pytest.mark.parametrize("name", ["ViT", "ViP", "ViN", "HybridViT", "HybridViP", "HybridViN"])
@pytest.mark.parametrize("position", ["rope", "rope_axial", "none"])
def test_nets_without_a_length_take_any_size(name: str, position: str) -> None:
    net = tiny(vix.SYSTEMS[name], position=position)
    assert net(torch.randn(1, 3, 9, 21)).shape == (1, 5)


@pytest.mark.parametrize("name", systems_with("patch_size"))
def test_an_image_that_the_patch_does_not_divide_is_an_error(name: str) -> None:
    net = tiny(vix.SYSTEMS[name], patch_size=4)
    with pytest.raises(ValueError, match="patch_size 4x4 does not divide image_size 18x16"):
        net(torch.randn(1, 3, 18, 16))


@with_every_system
@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 16, 16), (1, 16, 16, 3)], ids=str)
def test_what_is_no_batch_of_images_is_an_error(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} takes images \(batch, 3, height, width\), got \({shape[0]}, "):
        tiny(vix.SYSTEMS[name])(torch.randn(shape))


RATES = ("dropout", "emb_dropout", "drop_path", "proj_dropout", "attn_dropout")


def refused(*arguments: str) -> Any:
    """Parametrises over (system, argument) for those of the arguments that each system takes."""
    pairs = [(name, argument) for argument in arguments for name in systems_with(argument)]
    return pytest.mark.parametrize(("name", "argument"), pairs)


def refusal(name: str, **arguments: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as error:
        vix.SYSTEMS[name](**{"image_size": 16, **arguments})
    assert "\n" not in str(error.value)
    return str(error.value)


@refused("image_size", "patch_size", "num_classes", "channels", "dim", "depth", "heads", "dim_head", "mlp_dim")
def test_what_counts_must_be_a_positive_whole_number(name: str, argument: str) -> None:
    # No classes is timm's word for no classifier.
    for value in (-1, "64", 2.5) if argument == "num_classes" else (0, -1, "64", 2.5):
        message = refusal(name, **{argument: value})
        assert argument in message
        assert "positive whole number" in message
        assert message.endswith(f"got {value!r}")


@refused("rank", "num_landmarks", "features", "token_dim", "mlp_ratio")
def test_what_mixers_count_must_be_positive(name: str, argument: str) -> None:
    for value in (0, -1):
        message = refusal(name, **{argument: value})
        assert message.startswith(f"{argument} must be ")
        assert "positive" in message
        assert message.endswith(f"got {value}")


@refused(*RATES)
def test_rates_must_be_probabilities_below_one(name: str, argument: str) -> None:
    for value in (-0.1, 1, 1.5, "0.1"):
        assert refusal(name, **{argument: value}) == f"{argument} must be at least 0 and below 1, got {value!r}"


@refused("pool", "position", "embedding", "norm")
def test_choices_must_be_among_those_that_the_error_lists(name: str, argument: str) -> None:
    for value in ("wrong", None, 3):
        message = refusal(name, **{argument: value})
        assert message.startswith(f"{argument} must be one of ")
        assert message.endswith(f"got {value!r}")


@with_every_system
def test_misspelt_arguments_are_refused_with_the_nearest_name(name: str) -> None:
    message = refusal(name, num_clases=10)
    assert message.startswith(f"{name} takes no num_clases=10; did you mean num_classes?")
    assert "image_size" in message


@with_every_system
def test_arguments_are_given_by_name(name: str) -> None:
    with pytest.raises(TypeError):
        vix.SYSTEMS[name](32)


@pytest.mark.parametrize("name", systems_with("patch_size"))
def test_a_patch_must_divide_the_image(name: str) -> None:
    message = refusal(name, image_size=(32, 12), patch_size=5)
    assert "patch_size 5x5 does not divide image_size 32x12" in message
    assert "the height takes 1, 2, 4, 8, 16, 32" in message


@pytest.mark.parametrize("name", [name for name, system in vix.SYSTEMS.items() if issubclass(system, vix.ViT)])
@pytest.mark.parametrize(("position", "width", "multiple"), [("rope", 5, 2), ("rope_axial", 6, 4)])
def test_heads_must_be_wide_enough_to_turn(name: str, position: str, width: int, multiple: int) -> None:
    message = refusal(name, position=position, dim_head=width)
    assert f"position={position!r}" in message
    assert f"dim_head must be a multiple of {multiple}, got {width}" in message


@with_every_system
def test_copies_and_pickles_are_the_same_net(name: str) -> None:
    net = tiny(vix.SYSTEMS[name]).eval()
    batch = images(net)
    saved = io.BytesIO()
    torch.save(net, saved)
    saved.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(saved, weights_only=False)):
        assert type(other) is type(net)
        assert other.spec == net.spec
        assert_close(other(batch), net(batch), rtol=0, atol=0)


@with_every_system
def test_weights_alone_restore_a_net_of_another_seed(name: str) -> None:
    net, other = (tiny(vix.SYSTEMS[name], seed=seed).eval() for seed in (0, 1))
    batch = images(net)
    assert not torch.allclose(net(batch), other(batch))
    saved = io.BytesIO()
    torch.save(net.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert_close(other(batch), net(batch), rtol=0, atol=0)


@with_every_variant
def test_checkpoints_hold_random_features_and_no_rotations(system: type[Backbone], options: dict[str, Any]) -> None:
    net = tiny(system, **options)
    state = net.state_dict()
    tables = [module for module in net.modules() if isinstance(module, vix.positions.RotaryPosition)]
    performers = [path for path, module in net.named_modules() if isinstance(module, vix.Performer)]
    assert bool(tables) is str(options.get("position")).startswith("rope")
    assert not [key for key in state if key.endswith((".cosine", ".sine"))]
    assert [f"{path}.projection" in state for path in performers] == [True] * len(performers)


@with_every_system
def test_reset_classifier_changes_the_head_the_count_and_the_spec(name: str) -> None:
    net = tiny(vix.SYSTEMS[name]).double().eval()
    features = net.forward_features(images(net))
    net.reset_classifier(3)
    assert net(images(net)).shape == (2, 3)
    assert net(images(net)).dtype == torch.float64
    assert_close(net.forward_features(images(net)), features, rtol=0, atol=0)
    assert net.num_classes == 3
    again = vix.build(net.spec).double()
    again.load_state_dict(net.state_dict())
    assert_close(again.eval()(images(net)), net(images(net)))
    with pytest.raises(ValueError, match="num_classes must be a positive whole number, got -1"):
        net.reset_classifier(-1)


@with_every_system
def test_without_classes_the_vector_comes_out_that_a_classifier_would_see(name: str) -> None:
    net = tiny(vix.SYSTEMS[name]).eval()
    seen = net.forward_head(net.forward_features(images(net)), pre_logits=True)
    assert seen.shape == (2, net.num_features)
    assert_close(net.get_classifier()(seen), net(images(net)))
    net.reset_classifier(0)
    assert_close(net(images(net)), seen)
    again = vix.build(net.spec).eval()
    again.load_state_dict(net.state_dict())
    assert_close(again(images(net)), seen)
    net.reset_classifier(4)
    assert net(images(net)).shape == (2, 4)


@with_every_variant
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_features_and_head_compose_to_the_forward(
    system: type[Backbone], options: dict[str, Any], training: bool
) -> None:
    net = tiny(system, **options).double().train(training)
    batch, learned = images(net).double(), tuple(net.parameters())
    composed, logits = net.forward_head(net.forward_features(batch)), net(batch)
    assert_close(composed, logits)
    of_composed, of_logits = (torch.autograd.grad(out.sin().sum(), learned) for out in (composed, logits))
    # What cancels, such as a bias behind which the tokens are normalised, leaves a rounding.
    assert_close(of_composed, of_logits, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["ViT", "ViL", "ViP", "ViN", "FNet"])
def test_the_last_block_works_for_the_class_token_alone_unless_a_hook_looks_on(name: str) -> None:
    # Networks of four times the width, as is usual: what the last block saves is not lost beside Nyström's inverse.
    net = tiny(vix.SYSTEMS[name], depth=2, mlp_dim=64)
    batch, seen = images(net), []
    expected = net(batch)
    costs = [count_flops(lambda: net(batch)), bytes_kept(lambda: net(batch), net.parameters())]
    hook = net.blocks[-1].mlp.expand.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    watched = net.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    assert_close(net(batch), expected)
    assert seen[-1] == net.tokens.count
    costs_of_all = [count_flops(lambda: net(batch)), bytes_kept(lambda: net(batch), net.parameters())]
    # Nyström attention still needs the queries of all tokens for its landmarks.
    assert all(cost < 0.93 * of_all for cost, of_all in zip(costs, costs_of_all, strict=True))
    hook.remove()
    watched.remove()
    assert count_flops(lambda: net(batch)) == costs[0]
    mean = tiny(vix.SYSTEMS[name], depth=2, mlp_dim=64, pool="mean")
    assert count_flops(lambda: mean(batch)) > costs[0]


@with_every_system
def test_the_classifier_sees_as_many_features_as_the_net_says(name: str) -> None:
    net = tiny(vix.SYSTEMS[name])
    widths = [module.in_features for module in net.head.modules() if isinstance(module, nn.Linear)]
    assert widths == [net.num_features]


@with_every_variant
def test_what_must_not_decay_is_named_among_the_parameters(system: type[Backbone], options: dict[str, Any]) -> None:
    net = tiny(system, **options)
    parameters, undecayed = dict(net.named_parameters()), net.no_weight_decay()
    assert undecayed <= set(parameters)
    tokens = {name for name in parameters if name.endswith(("class_token", "position.table"))}
    assert tokens <= undecayed
    assert not {name for name in undecayed if ".mlp." in name or "project" in name or name.startswith("head")}


@with_every_variant
@pytest.mark.parametrize("dropping", [False, True], ids=["no dropout", "dropout"])
def test_recomputing_blocks_changes_neither_logits_nor_gradients(
    system: type[Backbone], options: dict[str, Any], dropping: bool
) -> None:
    rates = {rate: 0.3 for rate in RATES if dropping and rate in parameters_of(system)}
    net = tiny(system, **options, **rates)
    batch = images(net, 4)
    state = copy.deepcopy(net.state_dict())
    torch.manual_seed(1)
    logits, expected = net(batch), gradients(net, batch)
    after = copy.deepcopy(net.state_dict())
    net.load_state_dict(state)
    net.set_grad_checkpointing()
    torch.manual_seed(1)
    assert_close(net(batch), logits, rtol=0, atol=0)
    assert_close(gradients(net, batch), expected)
    # Running statistics count a batch once, though its blocks ran twice.
    assert_close(net.state_dict(), after)
    net.set_grad_checkpointing(False)
    assert_close(gradients(net, batch), expected)


@with_every_system
def test_recomputing_blocks_works_under_autocast(name: str) -> None:
    net = tiny(vix.SYSTEMS[name])
    batch, seen = images(net), []
    for recompute in (False, True):
        net.zero_grad()
        net.set_grad_checkpointing(recompute)
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(batch).square().sum()
        loss.backward()
        seen.append([parameter.grad.clone() for parameter in net.parameters()])
    assert_close(*seen)


@pytest.mark.parametrize(("name", "rate"), [(name, rate) for rate in RATES for name in systems_with(rate)])
def test_every_rate_is_honoured_in_training_and_off_in_eval(name: str, rate: str) -> None:
    system = vix.SYSTEMS[name]
    net, plain = tiny(system, **{rate: 0.5}), tiny(system)
    plain.load_state_dict(net.state_dict())
    batch = images(net, 6)
    assert_close(net.eval()(batch), plain.eval()(batch), rtol=0, atol=0)
    net.train()
    assert worst(net(batch), net(batch)) > 1e-3


@with_every_system
def test_nothing_is_random_in_training_without_a_rate(name: str) -> None:
    net = tiny(vix.SYSTEMS[name])
    assert_close(net(images(net)), net(images(net)), rtol=0, atol=0)


@with_every_system
def test_the_same_seed_gives_the_same_net(name: str) -> None:
    one, other = (tiny(vix.SYSTEMS[name], seed=3) for _ in range(2))
    assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


@with_every_system
def test_forward_leaves_images_and_weights_as_they_were(name: str) -> None:
    net = tiny(vix.SYSTEMS[name]).eval()
    batch, state = images(net), copy.deepcopy(net.state_dict())
    net(batch)
    assert_close(batch, images(net), rtol=0, atol=0)
    assert_close(dict(net.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.slow
@with_every_system
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_net_compiles_to_one_graph(name: str, training: bool) -> None:
    # In double precision: BatchNorm over two images multiplies a rounding of LeViN's kernel by thousands.
    net = tiny(vix.SYSTEMS[name]).train(training).double()
    compiled, batch = copy.deepcopy(net), images(net)
    torch.compiler.reset()
    compiled.compile(backend=os.environ.get("VIX_BACKEND", "aot_eager"), fullgraph=True)
    if training:
        assert_close(gradients(compiled, batch), gradients(net, batch), rtol=1e-4, atol=1e-5)
    else:
        with torch.no_grad():
            assert_close(compiled(batch), net(batch))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("ViL", {"one_kv_head": True, "share_kv": True}),
        ("ViP", {"as_published": True, "qkv_bias": True}),
        ("ViN", {"as_published": True}),
    ],
)
def test_defaults_keep_no_more_bytes_than_as_published(name: str, published: dict[str, Any]) -> None:
    # At the published sizes: 1,024 tokens, or 1,025 with a class token.
    batch, counts = torch.randn(2, 3, 32, 32), []
    for options in ({}, published):
        net = vix.SYSTEMS[name](**options)
        counts.append(bytes_kept(lambda net=net: net(batch), net.parameters()))
    assert counts[0] <= counts[1]

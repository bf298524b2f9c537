"""Another attention in trained transformers: weights kept, softmax approached, gradients whole, others refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import vix
from tests.nets import SIZES, images, tiny
from vix.swap import attention_layers, tokens_of
from vix.swap.foreign import FusedProjection
from vix.tokens import Tokens

# Exact with as many landmarks or keys as tokens; Performer comes near with its number of features.
EXACT_NYSTROM = partial(vix.NystromAttention, num_landmarks=10_000, iterations=None)
# The published sizes, and small ones of the same classes for most tests; a kernel cannot tell them apart.
PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "timm vit_tiny_patch16_224": lambda: timm.create_model("vit_tiny_patch16_224"),
    "timm deit_tiny_distilled_patch16_224": lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
    "torchvision vit_b_16": lambda: awake(torchvision.models.vit_b_16(num_classes=10)),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm ViT": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64),
    "timm DeiT": lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=2, img_size=64),
    "torchvision ViT": lambda: awake(torchvision.models.VisionTransformer(64, 16, 2, 4, 64, 96, num_classes=10)),
    "vix ViT": lambda: tiny(vix.ViT),
    "vix CCT": lambda: tiny(vix.CCT),
}
SIDE = {name: 16 if name.startswith("vix") else 64 for name in MODELS} | dict.fromkeys(PUBLISHED, 224)


def awake(model: Any) -> nn.Module:
    """Gives torchvision's ViT a head that is not zero, and logits no larger than timm's and ours start with.

    The features that Performer needs for an error grow exponentially with the logits, so with torchvision's its law
    would show beyond a million features only.
    """
    nn.init.normal_(model.heads.head.weight, std=0.05)
    for layer in model.encoder.layers:
        with torch.no_grad():
            layer.self_attention.in_proj_weight[: 2 * model.hidden_dim] *= 0.5
    return model


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (MODELS | PUBLISHED)[name]().eval()


def pictures(name: str, count: int = 1) -> Tensor:
    return torch.randn(count, 3, SIDE[name], SIDE[name], generator=torch.Generator().manual_seed(1))


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in parts of the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_softmax_in_place_of_softmax_changes_nothing(name: str) -> None:
    model, x = make(name), pictures(name, 2)
    with torch.no_grad():
        before = model(x)
        torch.testing.assert_close(vix.swap_attention(model, vix.SoftmaxAttention)(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, *SLOW])
def test_nystrom_with_all_landmarks_gives_the_logits_of_softmax(name: str) -> None:
    model, x = make(name).double(), pictures(name).double()
    with torch.no_grad():
        before = model(x)
        after = vix.swap_attention(model, EXACT_NYSTROM)(x)
    # CCT's tokens are nearly alike here, and so are the rows whose pseudo-inverse is taken; the others reach 1e-12.
    assert distance(after, before) < 1e-5


@pytest.mark.parametrize("name", [*MODELS, *SLOW])
def test_linformer_with_all_keys_gives_the_logits_of_softmax(name: str) -> None:
    model, x = make(name).double(), pictures(name).double()
    with torch.no_grad():
        before = model(x)
        after = vix.swap_attention(model, partial(vix.Linformer, rank=tokens_of(model).count))(x)
    assert distance(after, before) < 1e-9


@pytest.mark.parametrize("name", [*MODELS, *SLOW])
def test_performer_comes_nearer_with_more_features(name: str) -> None:
    x = pictures(name).double()
    errors = []
    for features in (16, 2048):
        model = make(name).double()
        with torch.no_grad():
            before = model(x)
            after = vix.swap_attention(model, partial(vix.Performer, features=features))(x)
        errors.append(distance(after, before))
    # Random features err by one over the root of their number, 11 times less; the regulariser spares the few a part.
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.1


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        *((name, kernel) for name in MODELS for kernel in vix.KERNELS),
        *(pytest.param(name, vix.Performer, marks=pytest.mark.slow) for name in PUBLISHED),
    ],
)
def test_every_parameter_gets_a_gradient_through_every_kernel(name: str, kernel: type[vix.Attention]) -> None:
    model = vix.swap_attention(make(name), kernel).train()
    logits = model(pictures(name, 2))
    logits = logits if isinstance(logits, Tensor) else sum(logits)
    assert logits.shape[0] == 2
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_the_same_objects_under_the_same_names(name: str) -> None:
    model = make(name)
    before = dict(model.named_parameters())
    after = dict(vix.swap_attention(model, vix.Performer).named_parameters())
    assert before.keys() == after.keys()
    assert all(after[key] is before[key] for key in before)


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_the_original_load_into_the_swapped_model(name: str) -> None:
    model, fresh = make(name), make(name)
    state = model.state_dict()
    missing, unexpected = vix.swap_attention(fresh, vix.Linformer).load_state_dict(state, strict=False)
    assert not unexpected
    assert missing
    assert all(".attention." in key for key in missing)


def test_only_the_layers_asked_for_are_swapped() -> None:
    model = make("timm ViT")
    vix.swap_attention(model, vix.Performer, layers=[1])
    swapped = [type(block.attn).__name__ for block in model.blocks]  # type: ignore[union-attr, operator]
    assert swapped == ["Attention", "FusedProjection"]


def test_a_swapped_softmax_can_be_swapped_again() -> None:
    model, x = make("timm ViT"), pictures("timm ViT")
    vix.swap_attention(vix.swap_attention(model, vix.SoftmaxAttention), vix.Performer)
    assert [name for name, part in model.named_modules() if isinstance(part, vix.Performer)] == [
        "blocks.0.attn.attention",
        "blocks.1.attn.attention",
    ]
    assert model(x).shape == (1, 1000)


def test_norms_of_queries_and_keys_and_gates_are_kept() -> None:
    torch.manual_seed(0)
    attention = timm.layers.attention.Attention(
        32, num_heads=4, qkv_bias=True, qk_norm=True, scale_norm=True, gated=True, norm_layer=nn.LayerNorm
    ).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    before = attention(x)
    holder = nn.Sequential(attention)
    vix.swap_attention(holder, EXACT_NYSTROM, tokens=Tokens((3, 3)))
    assert isinstance(holder[0], FusedProjection)
    torch.testing.assert_close(holder(x), before, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_attention_keeps_its_order_of_axes(batch_first: bool) -> None:
    torch.manual_seed(0)
    holder = nn.ModuleList([nn.MultiheadAttention(16, 2, batch_first=batch_first, dtype=torch.float64)])
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    before = holder[0](x, x, x, need_weights=False)[0]
    vix.swap_attention(holder, EXACT_NYSTROM, tokens=Tokens((1, 5)))
    torch.testing.assert_close(holder[0](x, x, x, need_weights=False)[0], before, rtol=1e-6, atol=1e-8)


def test_tokens_are_those_that_the_model_says() -> None:
    assert tokens_of(make("timm ViT")) == Tokens((4, 4), 1)
    assert tokens_of(make("timm DeiT")) == Tokens((4, 4), 2)
    assert tokens_of(make("torchvision ViT")) == Tokens((4, 4), 1)
    assert tokens_of(make("vix CCT")) == tiny(vix.CCT).tokens


def test_a_net_of_ours_says_in_its_spec_what_was_swapped() -> None:
    net = tiny(vix.ViT)
    vix.swap_attention(net, partial(vix.Performer, features=32))
    again = vix.build(net.spec)
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(images(net)), net(images(net)))


def test_a_net_of_ours_refuses_to_describe_attention_that_differs_by_layer() -> None:
    net = vix.swap_attention(tiny(vix.ViT), vix.Performer, layers=[0])
    with pytest.raises(TypeError, match="differs by layer"):
        net.spec  # noqa: B018


def mixed() -> vix.Swapped:
    made = partial(vix.ViT, **SIZES["VisionTransformer"])
    return vix.Swapped(net=made, attention=vix.Performer, layers=[1], image_size=16, num_classes=5)


def test_a_net_of_mixed_attention_is_like_any_other() -> None:
    net = mixed().eval()
    kernels = [type(each).__name__ for each in net.modules() if isinstance(each, vix.Attention)]
    assert kernels == ["SoftmaxAttention", "Performer"]
    again = vix.build(net.spec).eval()
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(images(net)), net(images(net)))
    assert net.no_weight_decay() == {f"net.{name}" for name in net.net.no_weight_decay()}
    vector = net.forward_head(net.forward_features(images(net)), pre_logits=True)
    torch.testing.assert_close(net.head(vector), net(images(net)))
    net.set_grad_checkpointing()
    assert net.net.grad_checkpointing
    net.reset_classifier(3)
    assert net(images(net)).shape == (2, 3)
    assert net.spec["init_args"]["num_classes"] == 3


def test_a_net_of_mixed_attention_goes_to_another_resolution() -> None:
    net = mixed().eval()
    larger = net.resized(24)
    assert larger(images(larger)).shape == (2, 5)
    assert larger.tokens.count == 24 * 24 + 1
    torch.testing.assert_close(larger.resized(24)(images(larger)), larger(images(larger)))


def test_a_second_swap_does_not_speak_for_the_layers_of_the_first() -> None:
    net = vix.swap_attention(tiny(vix.ViT), vix.Performer, layers=[0])
    for twice in (vix.swap_attention(net, vix.Linformer), vix.swap_attention(mixed(), vix.Linformer)):
        with pytest.raises(TypeError, match="differs by layer"):
            twice.spec  # noqa: B018


# Parts like those of an attention, and yet not softmax over tokens: channels, windows with a table, other names.
OTHERS: dict[str, Callable[[], Any]] = {
    "ResNet": lambda: torchvision.models.resnet18(num_classes=2),
    "MlpMixer": lambda: timm.models.mlp_mixer.MlpMixer(img_size=32, num_blocks=1, embed_dim=16),
    "channel attention": lambda: timm.models.davit.ChannelAttention(32, 4),
    "Swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)),
    "vix ViP": lambda: tiny(vix.ViP),
    "encoder layer": lambda: nn.TransformerEncoderLayer(16, 2, batch_first=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_without_known_attention_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"has no softmax attention to swap") as error:
        vix.swap_attention(OTHERS[name](), vix.Performer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", [[2], [0, -1]])
def test_a_layer_that_is_not_there_is_refused_and_nothing_is_changed(layers: list[int]) -> None:
    net = tiny(vix.ViT)
    with pytest.raises(ValueError, match=r"layers: ViT has attentions 0 to 1, got"):
        vix.swap_attention(net, vix.Performer, layers=layers)
    assert len(attention_layers(net)) == 2


def test_a_bias_on_logits_is_not_lost_in_silence() -> None:
    with pytest.raises(ValueError, match="Performer takes no bias on its logits"):
        vix.swap_attention(tiny(vix.LeViT), vix.Performer)
    net = tiny(vix.LeViT, position="values")
    assert vix.swap_attention(net, vix.Performer)(images(net)).shape == (2, 5)


def test_a_mask_or_weights_are_refused_when_they_are_asked_for() -> None:
    model = vix.swap_attention(make("timm ViT"), vix.Performer)
    with pytest.raises(ValueError, match="Performer takes no mask"):
        model(pictures("timm ViT"), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    holder = nn.ModuleList([nn.MultiheadAttention(16, 2, batch_first=True)])
    vix.swap_attention(holder, vix.Performer, tokens=Tokens((1, 5)))
    x = torch.randn(1, 5, 16)
    with pytest.raises(ValueError, match="need_weights=False"):
        holder[0](x, x, x)
    with pytest.raises(ValueError, match="other keys"):
        holder[0](x, x.clone(), x, need_weights=False)


def test_a_model_that_does_not_say_its_tokens_is_asked_for_them() -> None:
    with pytest.raises(ValueError, match=r"give tokens=Tokens"):
        vix.swap_attention(nn.ModuleList([nn.MultiheadAttention(16, 2)]), vix.Performer)

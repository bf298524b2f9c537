"""Weights of other packages: the same images give the same logits in our bodies as in theirs."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vix
from vix.backbones import Backbone
from vix.convert import from_timm_levit, from_transformers_cvt, from_vit_pytorch_cct
from vix.measure import parameters


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def shake(net: nn.Module) -> nn.Module:
    """Moves what begins as zeros and ones, so that nothing agrees by being left out."""
    torch.manual_seed(0)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.7, 1.3)
        elif value.is_floating_point() and (value.ndim < 2 or name.endswith("attention_biases")):
            value.add_(0.3 * torch.randn_like(value))
    return net.eval()


@torch.no_grad()
def assert_same_logits(net: Backbone, convert: Callable[..., dict[str, Tensor]], theirs: nn.Module) -> None:
    net.load_state_dict(convert(shake(theirs).state_dict()))
    x = images(net.image_size[0])
    expected = theirs(x)
    expected = getattr(expected, "logits", expected)
    torch.testing.assert_close(net.eval()(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def large(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize(("size", "side"), [("128S", 64), large("128S", 224), large("256", 96), large("256", 224)])
def test_levit_is_timms(size: str, side: int, distilled: bool) -> None:
    theirs = timm.create_model(f"levit_{size.lower()}", img_size=side, distilled=distilled)
    assert_same_logits(vix.LeViT.preset(size, image_size=side), from_timm_levit, theirs)


@pytest.mark.parametrize("size", vix.LeViT.presets)
def test_levit_has_timms_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(f"levit_{size.lower()}", distilled=False)
        assert parameters(vix.LeViT.preset(size)) == parameters(theirs)


def test_levit_128s_with_its_teachers_head_has_the_published_7_8_million() -> None:
    theirs = timm.create_model("levit_128s")
    assert parameters(theirs) == 7_777_058
    # Ours has one head of 384 to 1,000 behind one BatchNorm.
    assert parameters(vix.LeViT.preset("128S")) == 7_777_058 - (384 * 1000 + 1000) - 2 * 384


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 64])
def test_cvt_13_is_that_of_transformers(side: int) -> None:
    # Importing it takes seconds.
    from transformers import CvtConfig, CvtForImageClassification

    theirs = CvtForImageClassification(CvtConfig(num_labels=10))
    net = vix.CvT.preset("13", image_size=side, num_classes=10)
    assert parameters(net) == parameters(theirs)
    assert_same_logits(net, from_transformers_cvt, theirs)


def test_cvt_13_and_21_have_the_published_20_and_32_million() -> None:
    with torch.device("meta"):
        assert parameters(vix.CvT.preset("13")) == 19_997_480
        assert parameters(vix.CvT.preset("21")) == 31_622_696


CCTS = [
    ("2/3x2", 32, {"num_layers": 2, "num_heads": 2, "mlp_ratio": 1, "embedding_dim": 128}),
    large("7/3x1", 32, {"num_layers": 7, "num_heads": 4, "mlp_ratio": 2, "embedding_dim": 256}),
    ("7/3x1", 40, {"num_layers": 7, "num_heads": 4, "mlp_ratio": 2, "embedding_dim": 256}),
    large("7/7x2", 224, {"num_layers": 7, "num_heads": 4, "mlp_ratio": 2, "embedding_dim": 256}),
    large("14/7x2", 224, {"num_layers": 14, "num_heads": 6, "mlp_ratio": 3, "embedding_dim": 384}),
]


@pytest.mark.parametrize(("position", "theirs"), [("learned", "learnable"), ("sine", "sine")])
@pytest.mark.parametrize(("name", "side", "sizes"), CCTS)
def test_cct_is_that_of_vit_pytorch(name: str, side: int, sizes: dict[str, Any], position: Any, theirs: str) -> None:
    from vit_pytorch.cct import CCT

    kernel, rounds = int(name[-3]), int(name[-1])
    tokenizer = {"kernel_size": kernel, "n_conv_layers": rounds, "stride": max(1, kernel // 2 - 1)}
    original = CCT(
        img_size=side, num_classes=10, padding=kernel // 2, positional_embedding=theirs, **tokenizer, **sizes
    )
    net = vix.CCT.preset(name, image_size=side, num_classes=10, position=position)
    tables = 0 if position == "sine" else net.tokens.count * net.num_features
    assert parameters(net) == parameters(original)
    assert tables == sum(value.numel() for key, value in net.named_parameters() if key == "position.table")
    assert_same_logits(net, from_vit_pytorch_cct, original)


@pytest.mark.parametrize("convert", [from_timm_levit, from_transformers_cvt, from_vit_pytorch_cct])
def test_other_weights_are_refused_by_name(convert: Callable[..., dict[str, Tensor]]) -> None:
    with pytest.raises(ValueError, match=r"'layer4\.weight' is no weight of"):
        convert({"layer4.weight": torch.zeros(1)})


def test_a_net_with_another_attention_takes_what_it_has_in_common() -> None:
    theirs = timm.create_model("levit_128s", img_size=64, num_classes=10)
    net = vix.LeViN.preset("128S", image_size=64, num_classes=10)
    missing, unexpected = net.load_state_dict(from_timm_levit(theirs.state_dict()), strict=False)
    assert all("residual" in key or "value_position" in key for key in missing)
    assert all(key.endswith("bias.table") for key in unexpected)

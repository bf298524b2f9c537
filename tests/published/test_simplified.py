"""The bodies published as CvN, CvP, LeViN and LeViP, beyond what the goldens hold."""

from typing import Any

import pytest
import torch

from tests.published.goldens import golden
from vix import published
from vix.published.simplified import Simplified, StandardNorm, standardise

SYSTEMS = ["CvN", "CvP", "LeViN", "LeViP"]


def small(system: str) -> Simplified:
    torch.manual_seed(0)
    return Simplified(**published.original(system).init_args(golden(system).arguments))


def test_the_norm_adds_its_eps_to_the_standard_deviation() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64) * 1e-4
    norm = StandardNorm(8).double()
    expected = (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + 1e-5)
    torch.testing.assert_close(norm(x), expected)
    # At this scale a LayerNorm is another function.
    assert (norm(x) - torch.nn.functional.layer_norm(x, (8,))).abs().max() > 0.1


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_gradients_of_the_norm_are_those_of_its_formula(eps: float) -> None:
    torch.manual_seed(0)
    shapes = ((3, 5, 8), (8,), (8,))
    x, weight, bias = inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True).sqrt() + eps) * weight + bias
    cotangent = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(standardise(x, weight, bias, eps=eps), inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
    )


def test_a_token_of_one_value_is_normalised_to_the_bias() -> None:
    x = torch.ones(2, 8, requires_grad=True)
    out = StandardNorm(8)(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (out == 0).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_checkpointing_changes_no_gradient(system: str) -> None:
    net, images, grads = small(system), torch.randn(1, 3, 24, 20), []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(images).square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert all(grad is not None and grad.isfinite().all() for grad in grads[0].values())
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("LeViN", {"stages": 3}, "the published LeViN can be loaded with stages=1 only, got 3"),
        ("LeViP", {"num_distill_classes": 5}, "num_distill_classes=None only, got 5"),
        ("CCT", {"pooling_kernel_size": 2}, "the published CCT can be loaded with pooling_kernel_size=3 only, got 2"),
        ("CCN", {"padding": 0}, "the published CCN can be loaded with padding=1 only, got 0"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(system: str, change: dict[str, Any], message: str) -> None:
    stored = golden(system)
    with pytest.raises(ValueError, match=message):
        published.load(system, stored.arguments | change, stored.state)


@torch.no_grad()
def test_a_saved_table_of_sines_is_loaded_as_it_is() -> None:
    stored = golden("CCT")
    learned = published.load("CCT", stored.arguments, stored.state)
    sines = published.load("CCT", stored.arguments | {"positional_embedding": "sine"}, stored.state)
    torch.testing.assert_close(sines(stored.images), learned(stored.images))

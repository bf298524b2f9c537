"""What is true of exact attention alone: two ways to compute it, a bias, dropout, weighted means."""

import pytest
import torch
from torch.testing import assert_close

from tests import reference
from vix import AttentionSpec, SoftmaxAttention
from vix.tokens import Tokens

ODD, OTHER = Tokens((3, 4), prefix=1), Tokens((2, 3))
SPEC = AttentionSpec(2, 8, ODD, OTHER)


def inputs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    shapes = ((ODD.count, 8), (OTHER.count, 8), (OTHER.count, 5))
    return tuple(torch.randn(3, 2, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_bias_is_added_to_the_logits(fused: bool) -> None:
    q, k, v = inputs()
    bias = torch.randn(2, ODD.count, OTHER.count, dtype=torch.float64, requires_grad=True)
    out, expected = SoftmaxAttention(SPEC, fused=fused)(q, k, v, bias), reference.softmax(q, k, v, bias)
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    given = (q, k, v, bias)
    assert_close(torch.autograd.grad(out, given, cotangent), torch.autograd.grad(expected, given, cotangent))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_bias_may_be_wider_than_half_precision_queries(fused: bool) -> None:
    q, k, v = (tensor.detach().bfloat16() for tensor in inputs())
    bias = torch.randn(2, ODD.count, OTHER.count)
    out = SoftmaxAttention(SPEC, fused=fused)(q, k, v, bias)
    expected = reference.softmax(q.double(), k.double(), v.double(), bias.double())
    assert out.dtype == torch.bfloat16
    # The bias is rounded to 8 bits, as are the weights and the output.
    assert_close(out.double(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_output_is_a_weighted_mean_of_the_values(fused: bool) -> None:
    q, k, v = inputs()
    same = v[..., :1, :].expand_as(v)
    assert_close(SoftmaxAttention(SPEC, fused=fused)(q, k, same), same[..., :1, :].expand(-1, -1, ODD.count, -1))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_order_of_keys_does_not_matter(fused: bool) -> None:
    q, k, v = inputs()
    order = torch.randperm(OTHER.count)
    kernel = SoftmaxAttention(SPEC, fused=fused)
    assert_close(kernel(q, k[..., order, :], v[..., order, :]), kernel(q, k, v))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_dropout_drops_weights_in_training_only_and_keeps_their_mean(fused: bool) -> None:
    q, k, v = (tensor.detach() for tensor in inputs())
    kernel, exact = SoftmaxAttention(SPEC, fused=fused, dropout=0.3), reference.softmax(q, k, v)
    assert_close(kernel.eval()(q, k, v), exact)
    kernel.train()
    torch.manual_seed(0)
    draws = torch.stack([kernel(q, k, v) for _ in range(1500)])
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - exact) / (draws.std(0) / len(draws) ** 0.5)
    # 390 values, in standard errors: the largest of as many normal numbers is about 3.
    assert error.abs().max() < 5

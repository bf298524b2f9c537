"""Softmax attention with a learned bias whose matrices are made again: the same values, gradients, fewer bytes."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import reference
from vix import AttentionSpec, SoftmaxAttention
from vix.attention import biased
from vix.attention.biased import BiasedAttention
from vix.measure import bytes_kept, count_flops
from vix.tokens import Tokens

BATCH, HEADS = 2, 3


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> tuple[Tensor, ...]:
    """Queries, keys and values as LeViT has them, parts of what a projection gave, and a bias."""
    torch.manual_seed(0)
    q = torch.randn(batch, queries, HEADS, 4, dtype=dtype).transpose(1, 2)
    k, v = torch.randn(batch, keys, HEADS, 11, dtype=dtype).transpose(1, 2).split([4, 7], dim=-1)
    return tuple(part.requires_grad_() for part in (q, k, v, torch.randn(HEADS, queries, keys, dtype=dtype)))


@pytest.mark.parametrize("most", [1, 3 * 7 * 2, 2**21], ids=["a query", "two queries", "all"])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (5, 7), (1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_softmax_attention(
    monkeypatch: pytest.MonkeyPatch, most: int, queries: int, keys: int, batch: int
) -> None:
    monkeypatch.setattr(biased, "MOST", most)
    given = inputs(queries, keys, batch=batch)
    out, expected = BiasedAttention.apply(*given), reference.softmax(*given)
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, given, cotangent), torch.autograd.grad(expected, given, cotangent))


def test_single_precision_errs_about_as_little_as_torch() -> None:
    given = inputs(65, 33, torch.float32)
    exact = reference.softmax(*(part.double() for part in given))
    torchs = torch.nn.functional.scaled_dot_product_attention(*given[:3], attn_mask=given[3])
    error, of_torch = ((out.double() - exact).abs().max() for out in (BiasedAttention.apply(*given), torchs))
    assert error <= 1.5 * of_torch


def test_large_logits_do_not_overflow() -> None:
    q, k, v, bias = inputs(5, 7, torch.float32)
    given = (q * 1e3, k * 1e3, v, bias)
    out = BiasedAttention.apply(*given)
    assert_close(out.double(), reference.softmax(*(part.double() for part in given)), atol=1e-4, rtol=1e-4)


def test_a_bias_that_is_not_learned_gets_no_gradient() -> None:
    *given, bias = inputs(5, 7)
    expected = torch.autograd.grad(reference.softmax(*given, bias).square().sum(), given)
    fixed = bias.detach()
    assert_close(torch.autograd.grad(BiasedAttention.apply(*given, fixed).square().sum(), given), expected)


@pytest.mark.parametrize(
    ("dtype", "size", "taken"),
    [
        (torch.float32, 2**9, True),
        (torch.float64, 2**9, True),
        (torch.bfloat16, 2**9, False),
        (torch.float32, 2**8, False),
    ],
)
def test_softmax_attention_keeps_no_matrix_of_a_large_image(dtype: torch.dtype, size: int, taken: bool) -> None:
    tokens = Tokens((1, size))
    q, k, v = (torch.randn(1, 2, size, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, size, size, dtype=dtype, requires_grad=True)
    kernel = SoftmaxAttention(AttentionSpec(2, 8, tokens, tokens))
    matrices = 2 * size * size * dtype.itemsize
    # The bias is there anyway.
    kept = bytes_kept(lambda: kernel(q, k, v[..., :5], bias), [bias])
    assert (kept < matrices) == taken


def test_autocast_casts_as_it_does_elsewhere() -> None:
    tokens = Tokens((1, 2**9))
    q, k, v = (torch.randn(1, 2, tokens.count, 8) for _ in range(3))
    kernel, bias = SoftmaxAttention(AttentionSpec(2, 8, tokens, tokens)), torch.randn(2, tokens.count, tokens.count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = kernel(q, k, v, bias)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), kernel(q, k, v, bias), atol=0.02, rtol=0.05)


def test_its_products_are_counted() -> None:
    q, k, v, bias = inputs(6, 5)
    forward = 2 * BATCH * HEADS * 6 * 5 * (4 + 7)
    assert count_flops(lambda: BiasedAttention.apply(q, k, v, bias)) == forward
    # Backward makes the logits again; of weights and logits there are four products more.
    again = 2 * BATCH * HEADS * 6 * 5 * 4
    assert count_flops(lambda: BiasedAttention.apply(q, k, v, bias).sum().backward()) == 3 * forward + again

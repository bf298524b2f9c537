"""Attention beside zero keys equals attention with these keys, values and gradients, whichever way it is computed."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from vix.attention import zeros


def made(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    weights = (q @ functional.pad(k, (0, 0, count, 0)).mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ functional.pad(v, (0, 0, count, 0))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("queries", "keys", "count"), [(4, 9, 3), (1, 1, 1), (7, 2, 300)])
def test_zero_keys_that_are_not_made_count_as_if_they_were(
    queries: int, keys: int, count: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:
        assert zeros._fused is not None, "this torch has no fused attention for CPUs: the other way is taken always"
    else:
        monkeypatch.setattr(zeros, "_fused", None)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (queries, keys, keys))
    out, expected = zeros.attend_beside_zeros(q, k, v, count), made(q, k, v, count)
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, (q, k, v), cotangent), torch.autograd.grad(expected, (q, k, v), cotangent))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_its_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16) for n in (5, 33, 33))
    out = zeros.attend_beside_zeros(q.to(dtype), k.to(dtype), v.to(dtype), 7)
    assert out.dtype == dtype
    assert_close(out.float(), made(q, k, v, 7), atol=0.02, rtol=0.02)

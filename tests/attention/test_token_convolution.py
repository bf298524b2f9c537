"""Both ways to convolve tokens are the convolution that they stand for, gradients included."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.attention.test_contract import Case, Place
from vix import NystromAttention
from vix.attention import depthwise
from vix.attention.band import RUN, BandConvolution
from vix.attention.depthwise import DepthwiseConvolution
from vix.tokens import Tokens

FORMS = {"band": (BandConvolution, torch.float64), "depth-wise": (DepthwiseConvolution, torch.float32)}


@pytest.mark.parametrize(("form", "dtype"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("taps", [1, 3, 33, 2 * RUN + 5])
@pytest.mark.parametrize("count", [1, RUN - 1, RUN, RUN + 1, 3 * RUN + 7])
@pytest.mark.parametrize(("batch", "width"), [(2, 4), (1, 1), (3, 7)])
def test_it_is_a_depth_wise_convolution_with_zero_padding(
    form: type[torch.autograd.Function], dtype: torch.dtype, count: int, taps: int, batch: int, width: int
) -> None:
    torch.manual_seed(0)
    usual = nn.Conv2d(3, 3, (taps, 1), padding=(taps // 2, 0), groups=3, bias=False).double()
    # The layout that a projection gives: heads between tokens and widths.
    x = torch.randn(batch, count, 3, width, dtype=torch.float64).transpose(1, 2).requires_grad_()
    out, expected = form.apply(x.to(dtype), usual.weight.flatten(1).to(dtype)), usual(x)
    cotangent = torch.randn_like(expected)
    leaves = (x, usual.weight)
    near = {} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-4}
    assert_close(out.double(), expected, **near)
    assert_close(
        torch.autograd.grad(out.double(), leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), **near
    )


@pytest.mark.parametrize("as_published", [False, True])
def test_nystrom_attention_is_the_same_with_either(monkeypatch: pytest.MonkeyPatch, as_published: bool) -> None:
    tokens, taken = Tokens((5, 9), prefix=1), []
    place = Place(tokens, tokens)
    kernel = Case(NystromAttention, {"num_landmarks": 4, "as_published": as_published}).make(place, torch.float32)
    inputs, seen = place.inputs(torch.float32), []
    convolve = depthwise.convolve

    def counted(*arguments: Any) -> Tensor:
        taken.append(arguments)
        return convolve(*arguments)

    monkeypatch.setattr(depthwise, "convolve", counted)
    for has_onednn in (True, False):
        monkeypatch.setattr("vix.attention.nystrom.has_onednn", lambda v, here=has_onednn: here)
        out = kernel(*inputs)
        seen.append([out, *torch.autograd.grad(out.sin().sum(), (*inputs, *kernel.parameters()))])
        # Forward and backward.
        assert len(taken) == 2
    assert_close(*seen, rtol=1e-4, atol=1e-5)

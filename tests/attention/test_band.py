"""The band matrix is the convolution that it stands for, gradients included."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vix.attention.band import RUN, BandConvolution


@pytest.mark.parametrize("taps", [1, 3, 33, 2 * RUN + 5])
@pytest.mark.parametrize("count", [1, RUN - 1, RUN, RUN + 1, 3 * RUN + 7])
def test_it_is_a_depth_wise_convolution_with_zero_padding(count: int, taps: int) -> None:
    torch.manual_seed(0)
    usual = nn.Conv2d(3, 3, (taps, 1), padding=(taps // 2, 0), groups=3, bias=False).double()
    # The layout that a projection gives: heads between tokens and widths.
    x = torch.randn(2, count, 3, 4, dtype=torch.float64).transpose(1, 2).requires_grad_()
    out, expected = BandConvolution.apply(x, usual.weight.flatten(1)), usual(x)
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    leaves = (x, usual.weight)
    assert_close(torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent))

"""MLP mixing is the formula of its paper and belongs to one grid of tokens."""

import pytest
import torch
from torch.testing import assert_close

from tests import reference
from vix.mixers import MLPMixing
from vix.tokens import Tokens

TOKENS = Tokens((3, 4), prefix=1)


@pytest.mark.parametrize("hidden", [None, 5])
def test_it_is_the_formula(hidden: int | None) -> None:
    torch.manual_seed(0)
    mixer = MLPMixing(6, TOKENS, hidden=hidden).double()
    x = torch.randn(2, TOKENS.count, 6, dtype=torch.float64, requires_grad=True)
    weights = dict(mixer.named_parameters())
    assert set(weights) == {
        f"network.{layer}.{part}" for layer in ("expand", "contract") for part in ("weight", "bias")
    }
    expected = reference.mlp_mixing(x, *weights.values())
    out = mixer(x, TOKENS)
    assert_close(out, expected)
    given, cotangent = (x, *weights.values()), torch.randn_like(out)
    assert_close(torch.autograd.grad(out, given, cotangent), torch.autograd.grad(expected, given, cotangent))


def test_hidden_width_left_out_is_the_number_of_tokens() -> None:
    assert MLPMixing(6, TOKENS).network.expand.out_features == TOKENS.count


def test_channels_are_mixed_by_the_same_weights() -> None:
    mixer, x = MLPMixing(6, TOKENS).double(), torch.randn(2, TOKENS.count, 6, dtype=torch.float64)
    order = torch.randperm(6)
    assert_close(mixer(x[..., order], TOKENS), mixer(x, TOKENS)[..., order])


def test_other_tokens_are_an_error_that_names_both() -> None:
    mixer, other = MLPMixing(6, TOKENS), Tokens((2, 3), prefix=1)
    with pytest.raises(ValueError, match=r"built for 13 tokens \(3x4 \+ 1\), got 7 tokens \(2x3 \+ 1\)"):
        mixer(torch.randn(1, other.count, 6), other)

"""The small layers: precision, the feed-forward network, and branches that are dropped."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import reference
from vix.layers import DropPath, FeedForward, full_precision, widen


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_half_precision_is_widened_and_returned_as_it_came(dtype: torch.dtype, wide: torch.dtype) -> None:
    seen = []

    @full_precision
    def product(x: Tensor, factor: float, y: Tensor | None) -> Tensor:
        seen.append((x @ x).dtype)
        return x @ x * factor

    with torch.autocast("cpu", torch.bfloat16):
        out = product(torch.ones(2, 2, dtype=dtype), 2.0, None)
    assert seen == [wide]
    assert out.dtype == dtype
    assert widen(torch.ones(1, dtype=dtype)).dtype == wide


def test_full_precision_keeps_name_and_docstring() -> None:
    def named(x: Tensor) -> Tensor:
        """Has a docstring."""
        return x

    assert full_precision(named).__name__ == "named"
    assert full_precision(named).__doc__ == "Has a docstring."


def test_feed_forward_is_linear_gelu_linear() -> None:
    torch.manual_seed(0)
    network, x = FeedForward(6, 9).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    hidden = reference.gelu(x @ network.expand.weight.T + network.expand.bias)
    assert_close(network(x), hidden @ network.contract.weight.T + network.contract.bias)


def test_feed_forward_drops_after_both_linear_maps_in_training_only() -> None:
    torch.manual_seed(0)
    network, x = FeedForward(64, 64, dropout=0.5), torch.randn(8, 5, 64)
    hidden = []
    network.contract.register_forward_pre_hook(lambda module, arguments: hidden.append(arguments[0]))
    out = network(x)
    for dropped in (*hidden, out):
        assert (dropped == 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert_close(network.eval()(x), network(x), rtol=0, atol=0)
    assert (network(x) != 0).all()


def test_drop_path_drops_whole_images_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2)
    out = DropPath(0.25)(x)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (out == out[:, :1, :1]).all()
    # The standard error of the mean of 4,000 draws is 0.009.
    assert out.mean().item() == pytest.approx(1, abs=0.04)


def test_drop_path_is_nothing_in_eval_mode_or_at_rate_zero() -> None:
    x = torch.randn(5, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_hands_gradients_to_the_kept_images_only() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 3, requires_grad=True)
    out = DropPath(0.5)(x)
    out.sum().backward()
    assert_close(x.grad, out.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_drop_path_keeps_the_type(dtype: torch.dtype) -> None:
    assert DropPath(0.5)(torch.ones(2, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_drop_path_refuses_a_rate_that_is_no_part(rate: float) -> None:
    with pytest.raises(ValueError, match=f"drop_path must be at least 0 and below 1, got {rate}"):
        DropPath(rate)


def test_drop_path_prints_its_rate() -> None:
    assert "rate=0.5" in repr(DropPath(0.5))

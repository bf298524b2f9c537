"""The small layers: precision, the feed-forward network, and branches that are dropped."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from tests import reference
from vix.layers import (
    MANY_TOKENS,
    DropPath,
    FeedForward,
    Linear,
    check_counts,
    check_rates,
    full_precision,
    linear,
    recompute,
    weight_gradient,
    widen,
)
from vix.measure import bytes_kept


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


def normed_pair(dim: int, hidden: int) -> tuple[torch.nn.LayerNorm, FeedForward]:
    torch.manual_seed(0)
    norm, network = torch.nn.LayerNorm(dim).double(), FeedForward(dim, hidden).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm, network


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 1, 6), (3, 6)], ids=str)
def test_a_given_norm_changes_nothing_but_what_is_kept(shape: tuple[int, ...]) -> None:
    norm, network = normed_pair(6, 10)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    leaves = [x, *norm.parameters(), *network.parameters()]
    out, expected = network(x, norm), network(norm(x))
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent))


def kept(forward: Callable[[], Tensor]) -> int:
    """Number of values in distinct tensors that backward keeps, parameters included."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(seen.values())


def test_a_given_norm_keeps_three_widths_a_token_where_six_are_usual() -> None:
    norm, network = normed_pair(8, 16)
    x = torch.randn(2, 500, 8, dtype=torch.float64, requires_grad=True)
    given = kept(lambda: network(x, norm))
    applied = kept(lambda: network.contract(network.activation(network.expand(norm(x)))))
    assert given < 1000 * (3 * 8 + 3)
    assert applied > 1000 * 6 * 8


def test_a_given_norm_still_drops_in_training() -> None:
    norm, network = normed_pair(6, 10)
    network.dropout.p = 0.5
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    assert (network(x, norm) == 0).any()
    assert not (network.eval()(x, norm) == 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_a_given_norm_has_the_gradients_of_an_applied_one(dtype: torch.dtype) -> None:
    norm, network = (module.float() for module in normed_pair(32, 64))
    x = torch.randn(2, 9, 32, requires_grad=True)
    leaves = [x, *norm.parameters(), *network.parameters()]
    with torch.autocast("cpu", dtype):
        out, expected = network(x, norm), network(norm(x))
    assert out.dtype == expected.dtype == dtype
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    ours, usual = (torch.autograd.grad(result, leaves, cotangent) for result in (out, expected))
    for one, other in zip(ours, usual, strict=True):
        assert one.dtype == other.dtype
        # Both round to half precision, in another order.
        assert (one - other).abs().max() <= 0.03 * other.abs().max()


def normed_network(dtype: torch.dtype = torch.float64) -> tuple[FeedForward, torch.nn.LayerNorm]:
    """A feed-forward network and the normalisation before it, with a gain and a shift that are not one and zero."""
    torch.manual_seed(0)
    network, norm = FeedForward(6, 9).to(dtype), torch.nn.LayerNorm(6).to(dtype)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network, norm


def test_a_network_that_is_given_its_normalisation_applies_it_first() -> None:
    network, norm = normed_network()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    given = (x, *network.parameters(), *norm.parameters())
    out, expected = network(x, norm), network(norm(x))
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, given, cotangent), torch.autograd.grad(expected, given, cotangent))
    with torch.no_grad():
        assert_close(network(x, norm), expected)


def test_gradients_of_a_normalised_network_are_those_of_finite_differences() -> None:
    network, norm = normed_network()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    given = (x, *network.parameters(), *norm.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: network(x, norm), given)


@pytest.mark.parametrize("frozen", ["network", "norm", "input"])
def test_a_part_of_a_normalised_network_may_be_frozen(frozen: str) -> None:
    network, norm = normed_network()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=frozen != "input")
    network.requires_grad_(frozen != "network")
    norm.requires_grad_(frozen != "norm")
    learned = [tensor for tensor in (x, *network.parameters(), *norm.parameters()) if tensor.requires_grad]
    out, expected = network(x, norm), network(norm(x))
    assert_close(torch.autograd.grad(out.sum(), learned), torch.autograd.grad(expected.sum(), learned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_normalised_network_under_autocast_is_near_the_same_in_float32(dtype: torch.dtype) -> None:
    network, norm = normed_network(torch.float32)
    x = torch.randn(2, 50, 6).to(dtype).requires_grad_()
    given = (x, *network.parameters(), *norm.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, norm)
    expected = network(norm(x.float()))
    # Rounded in bfloat16 (2^-8) are the normed token, the hidden values and the output.
    assert_close(out.float(), expected, atol=0.05, rtol=0.02)
    gradients = zip(torch.autograd.grad(out.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True)
    for actual, gradient in gradients:
        assert actual.dtype == gradient.dtype
        assert (actual - gradient).abs().max() < 0.03 * gradient.abs().max()


def test_a_normalised_network_drops_as_any_other() -> None:
    network, norm = normed_network()
    network.dropout.p = 0.5
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    assert (network(x, norm) == 0).any()
    assert_close(network.eval()(x, norm), network(norm(x)))


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", True, None])
def test_counts_are_positive_whole_numbers(count: object) -> None:
    with pytest.raises(ValueError, match=r"^depth must be a positive whole number, got ") as error:
        check_counts(dim=3, depth=count)
    assert repr(count) in str(error.value)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), "0.1", True, None])
def test_rates_are_at_least_zero_and_below_one(rate: object) -> None:
    with pytest.raises(ValueError, match=r"^dropout must be at least 0 and below 1, got ") as error:
        check_rates(drop_path=0, dropout=rate)
    assert repr(rate) in str(error.value)


def test_recomputing_gives_the_same_and_keeps_the_inputs_alone() -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fixed = torch.randn(3, 4, dtype=torch.float64)

    def function(x: Tensor, weight: Tensor, fixed: Tensor) -> Tensor:
        return ((x * weight).exp() + fixed).softmax(dim=-1)

    out, expected = recompute(function, x, weight, fixed), function(x, weight, fixed)
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(
        torch.autograd.grad(out, (x, weight), cotangent), torch.autograd.grad(expected, (x, weight), cotangent)
    )
    assert kept(lambda: recompute(function, x, weight, fixed)) == 3 * 12
    assert kept(lambda: function(x, weight, fixed)) > 3 * 12


@pytest.mark.parametrize(
    "shape", [(MANY_TOKENS, 6), (2, MANY_TOKENS, 5), (1, MANY_TOKENS + 3, 16), (3, 5, 400, 1)], ids=str
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["rows", "columns", "gaps"])
def test_a_linear_map_of_many_tokens_is_the_usual_one(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool, layout: str
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weight = torch.randn(7, shape[-1]).requires_grad_()
    leaves = [torch.randn(shape).requires_grad_(), weight, *([torch.randn(7).requires_grad_()] if bias else [])]
    laid = {"rows": lambda x: x, "columns": lambda x: x.mT.contiguous().mT, "gaps": lambda x: torch.stack([x, x])[0]}
    cotangent = torch.randn(*shape[:-1], 7)
    convolved = []
    convolution = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *given: convolved.append(1) or convolution(*given))
    x, *others = leaves
    out = linear(laid[layout](x), *others)
    assert convolved
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.nn.functional.linear(*wide)
    near = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(out.double(), expected, **near)
    for own, other in zip(
        torch.autograd.grad(out, leaves, cotangent),
        torch.autograd.grad(expected, wide, cotangent.double()),
        strict=True,
    ):
        torch.testing.assert_close(own.double(), other, **near)
    # The same bytes: its input, as a view.
    counted = [bytes_kept(lambda way=way: way(*leaves), leaves[1:]) for way in (linear, torch.nn.functional.linear)]
    assert counted[0] == counted[1]


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 20), (20, 5), (64, 16), (19, 5), (16, 16), (1, 1)])
def test_weights_of_many_tokens_get_their_gradient_from_a_convolution(
    monkeypatch: pytest.MonkeyPatch, outputs: int, inputs: int
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    # Rows of a wider tensor, too, which a convolution needs as they would lie alone.
    gradients, tokens = torch.randn(MANY_TOKENS, outputs + 3), torch.randn(MANY_TOKENS, inputs + 2)
    for grad, x in ((gradients[:, 3:], tokens[:, 2:]), (gradients[:, 3:].contiguous(), tokens[:, 2:].contiguous())):
        with FlopCounterMode(display=False) as counter:
            product = weight_gradient(grad, x)
        torch.testing.assert_close(product.double(), grad.double().mT @ x.double(), rtol=1e-4, atol=1e-3)
        assert counter.get_flop_counts()["Global"] == {
            torch.ops.aten.convolution_backward: 2 * MANY_TOKENS * outputs * inputs
        }
    few, other = gradients[:9], tokens[:9]
    torch.testing.assert_close(weight_gradient(few, other), few.mT @ other, rtol=0, atol=0)
    wide = weight_gradient(gradients.double(), tokens.double())
    torch.testing.assert_close(wide, gradients.double().mT @ tokens.double(), rtol=0, atol=0)


def test_few_tokens_other_types_and_a_single_core_take_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *given: pytest.fail("convolved"))
    weight, many = torch.randn(3, 4), torch.randn(MANY_TOKENS, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    linear(many[:-1], weight)
    linear(many.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(many, weight).dtype == torch.bfloat16
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    linear(many, weight)


def test_a_linear_map_is_exported_for_any_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer, tokens = Linear(4, 3), torch.export.Dim("tokens", min=1, max=2 * MANY_TOKENS)
    exported = torch.export.export(layer, (torch.randn(2, 4),), dynamic_shapes=({0: tokens},)).module()
    for count in (1, 2 * MANY_TOKENS):
        x = torch.randn(count, 4)
        torch.testing.assert_close(exported(x), layer(x))

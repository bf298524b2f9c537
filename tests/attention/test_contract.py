"""What every kernel promises, whatever is inside it: held for all of `vix.KERNELS` at every kind of place."""

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.reference import FORMULAS
from vix import KERNELS, Attention, AttentionSpec, Linformer, NystromAttention, Performer, SoftmaxAttention
from vix.tokens import Tokens


@dataclass(frozen=True)
class Place:
    """Sizes of one call: the spec, the width of a value, the number of images."""

    queries: Tokens
    keys: Tokens
    head_dim: int = 8
    value_dim: int = 8
    heads: int = 2
    batch: int = 2

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(self.heads, self.head_dim, self.queries, self.keys)

    @property
    def is_self(self) -> bool:
        return self.queries == self.keys

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k, v that ask for gradients."""
        generator = torch.Generator().manual_seed(seed)
        shapes = (
            (self.queries.count, self.head_dim),
            (self.keys.count, self.head_dim),
            (self.keys.count, self.value_dim),
        )
        return tuple(
            torch.randn(self.batch, self.heads, *shape, generator=generator, dtype=torch.float64)
            .to(dtype)
            .requires_grad_()
            for shape in shapes
        )


ODD = Tokens((3, 4), prefix=1)
PLACES = {
    "odd": Place(ODD, ODD),
    "even": Place(Tokens((4, 4)), Tokens((4, 4))),
    "wide values": Place(ODD, ODD, head_dim=4, value_dim=10),
    "narrow values": Place(ODD, ODD, head_dim=8, value_dim=3),
    "fewer keys": Place(Tokens((5, 3)), Tokens((3, 2)), value_dim=6),
    "fewer queries": Place(Tokens((2, 2), prefix=1), Tokens((5, 3), prefix=1), value_dim=16),
    "one query": Place(Tokens((1, 1)), Tokens((3, 3))),
    "one key": Place(Tokens((3, 3)), Tokens((1, 1))),
    "one token": Place(Tokens((1, 1)), Tokens((1, 1))),
    "one image, one head": Place(ODD, ODD, heads=1, batch=1),
    "odd width": Place(ODD, ODD, head_dim=7, value_dim=5),
}
LONG = Place(Tokens((9, 14), prefix=1), Tokens((9, 14), prefix=1), head_dim=16, value_dim=16, batch=1)
TINY = {
    "self": Place(Tokens((2, 2), prefix=1), Tokens((2, 2), prefix=1), head_dim=3, value_dim=3),
    "cross": Place(Tokens((3, 1)), Tokens((2, 2), prefix=1), head_dim=2, value_dim=3),
}


@dataclass(frozen=True)
class Case:
    """A kernel with options; `only_self` where they need queries and keys to be the same tokens."""

    kernel: type[Attention]
    options: dict[str, Any] = field(default_factory=dict)
    only_self: bool = False

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.kernel.__name__}({options})"

    def make(self, place: Place, dtype: torch.dtype = torch.float64, seed: int = 1) -> Attention:
        torch.manual_seed(seed)
        others = {} if place.is_self else self.kernel.options_for_other_keys
        return self.kernel(place.spec, **{**others, **self.options}).to(dtype)


INDEPENDENT = [Case(kernel) for kernel in KERNELS] + [
    Case(SoftmaxAttention, {"fused": False}),
    Case(Linformer, {"rank": 3}),
    Case(Linformer, {"rank": 5, "share_projection": False}),
    Case(Performer, {"features": 5}),
    Case(NystromAttention, {"num_landmarks": 4}),
    Case(NystromAttention, {"num_landmarks": 5, "iterations": 1, "residual_kernel": 3}, only_self=True),
    Case(NystromAttention, {"num_landmarks": 3, "iterations": None, "residual_kernel": None}),
]
"""Every kernel as it comes, and the options that take another way through it."""
CASES = [
    *INDEPENDENT,
    Case(Performer, {"as_published": True}),
    Case(NystromAttention, {"num_landmarks": 4, "as_published": True}, only_self=True),
]
"""The same, and the published rules, under which an image's output depends on its batch mates."""


def at_places(
    cases: list[Case], places: dict[str, Place], formula_known: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parametrises a test over (case, place), less what the options rule out."""

    def pairs() -> Iterator[Any]:
        for case in cases:
            if formula_known and case.kernel not in FORMULAS:
                continue
            for name, place in places.items():
                if place.is_self or not case.only_self:
                    yield pytest.param(case, place, id=f"{case}-{name}")

    return pytest.mark.parametrize(("case", "place"), list(pairs()))


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a fixed random functional of the output."""
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return torch.autograd.grad(out, inputs, cotangent)


def worst(actual: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest expected value."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@at_places(CASES, {**PLACES, "long": LONG}, formula_known=True)
def test_values_and_gradients_are_those_of_the_formula(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place), place.inputs()
    learned = (*inputs, *kernel.parameters())
    out, expected = kernel(*inputs), FORMULAS[case.kernel](kernel, *inputs)
    # Both sides are float64; an iterated or exact pseudo-inverse loses up to half of its 16 digits.
    assert_close(out, expected, rtol=1e-7, atol=1e-9)
    # A matrix that is not used (the projection of one key, say) has a gradient of zero in both.
    assert_close(gradients(out, learned), gradients(expected, learned), rtol=1e-6, atol=1e-8)


@at_places(CASES, TINY)
def test_gradients_are_those_of_finite_differences(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place), place.inputs()
    learned = tuple(kernel.parameters())
    # gradcheck moves its inputs in place, so parameters that the function does not name are moved too.
    assert torch.autograd.gradcheck(lambda q, k, v, *_: kernel(q, k, v), (*inputs, *learned), atol=1e-6, rtol=1e-4)


@at_places(CASES, PLACES)
def test_output_has_a_value_for_every_query(case: Case, place: Place) -> None:
    kernel, (q, k, v) = case.make(place, torch.float32), place.inputs(torch.float32)
    out = kernel(q, k, v)
    assert out.shape == (place.batch, place.heads, place.queries.count, place.value_dim)
    assert out.dtype == torch.float32
    assert out.isfinite().all()


@at_places(CASES, {**PLACES, "long": LONG})
@pytest.mark.parametrize("count", [1, 3])
def test_the_first_outputs_are_those_of_all(case: Case, place: Place, count: int) -> None:
    kernel, inputs = case.make(place), place.inputs()
    learned, count = (*inputs, *kernel.parameters()), min(count, place.queries.count)
    expected, (q, k, v) = kernel(*inputs)[..., :count, :], inputs
    gradient = gradients(expected, learned)
    outs = [kernel.first(q, k, v, count)]
    if kernel.queries_apart:
        outs.append(kernel(q[..., :count, :], k, v))
    for out in outs:
        assert_close(out, expected)
        assert_close(gradients(out, learned), gradient)


@at_places(CASES, PLACES)
def test_every_input_and_parameter_receives_a_finite_gradient(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place, torch.float32), place.inputs(torch.float32)
    kernel(*inputs).square().sum().backward()
    for tensor in (*inputs, *kernel.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.isfinite().all()


@at_places(CASES, {"odd": PLACES["odd"], "fewer keys": PLACES["fewer keys"]})
def test_gradients_do_not_depend_on_who_asks_for_them(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place), place.inputs()
    learned = (*inputs, *kernel.parameters())
    together = gradients(kernel(*inputs), learned)
    for index, expected in enumerate(together):
        for other, tensor in enumerate(learned):
            tensor.requires_grad_(other == index)
        (alone,) = gradients(kernel(*inputs), (learned[index],))
        assert_close(alone, expected)


@at_places(INDEPENDENT, PLACES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_output_does_not_depend_on_batch_mates(case: Case, place: Place, training: bool) -> None:
    kernel = case.make(place, torch.float32).train(training)
    inputs = [tensor.detach()[:1] for tensor in place.inputs(torch.float32)]
    mates = [100 * tensor.detach() for tensor in place.inputs(torch.float32, seed=3)]
    alone = kernel(*inputs)
    for crowd in (
        kernel(*(torch.cat(pair) for pair in zip(inputs, mates, strict=True)))[:1],
        kernel(*(torch.cat(pair) for pair in zip(mates, inputs, strict=True)))[-1:],
    ):
        # The same sums in float32, perhaps in another order.
        assert worst(crowd, alone) < 1e-5


@at_places(INDEPENDENT, {"odd": PLACES["odd"]})
def test_gradients_do_not_depend_on_batch_mates(case: Case, place: Place) -> None:
    kernel = case.make(place)
    inputs = [tensor.detach()[:1] for tensor in place.inputs()]
    mates = [100 * tensor.detach() for tensor in place.inputs(seed=3)]
    alone, crowd = ([tensor.requires_grad_() for tensor in inputs], [])
    for own, other in zip(inputs, mates, strict=True):
        crowd.append(torch.cat([own.detach(), other]).requires_grad_())
    kernel(*alone)[0].sum().backward()
    kernel(*crowd)[0].sum().backward()
    for own, both in zip(alone, crowd, strict=True):
        assert_close(both.grad[:1], own.grad)
        assert not both.grad[1:].any()


@at_places(CASES, {"odd": PLACES["odd"], "fewer keys": PLACES["fewer keys"]})
def test_memory_layout_does_not_matter(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place), place.inputs()
    expected = kernel(*inputs)
    gradient = gradients(expected, inputs)
    # As SelfAttention gives them, token-major; and as slices with gaps.
    token_major = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    with_gaps = [torch.stack([x, -x], dim=-1)[..., 0] for x in inputs]
    for layout in (token_major, with_gaps):
        out = kernel(*layout)
        assert_close(out, expected)
        assert_close(gradients(out, inputs), gradient)


@at_places(CASES, {"odd": PLACES["odd"]})
def test_keys_may_serve_as_values(case: Case, place: Place) -> None:
    kernel, (q, k, _) = case.make(place), place.inputs()
    out, expected = kernel(q, k, k), kernel(q, k, k.clone())
    assert_close(out, expected)
    assert_close(gradients(out, (q, k)), gradients(expected, (q, k)))


@at_places(CASES, {"odd": PLACES["odd"], "wide values": PLACES["wide values"]})
def test_one_head_of_keys_and_values_can_serve_all_queries(case: Case, place: Place) -> None:
    kernel, (q, k, v) = case.make(place), place.inputs()
    repeated = (k[:, :1].expand(-1, place.heads, -1, -1), v[:, :1].expand(-1, place.heads, -1, -1))
    expected = kernel(q, *(x.contiguous() for x in repeated))
    outs = [kernel(q, *repeated)]
    if kernel.accepts_one_kv_head:
        outs.append(kernel(q, k[:, :1], v[:, :1]))
    gradient = gradients(expected, (q, k, v))
    for out in outs:
        assert_close(out, expected)
        assert_close(gradients(out, (q, k, v)), gradient)


@at_places(CASES, {"odd": PLACES["odd"]})
def test_inputs_and_state_are_left_as_they_were(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place), place.inputs()
    before = [tensor.detach().clone() for tensor in inputs]
    state = {name: tensor.clone() for name, tensor in kernel.state_dict().items()}
    first = kernel(*inputs)
    first.sum().backward()
    with torch.no_grad():
        assert_close(kernel(*inputs), first.detach(), rtol=0, atol=0)
    with torch.inference_mode():
        assert_close(kernel(*inputs), first.detach(), rtol=0, atol=0)
    assert_close([tensor.detach() for tensor in inputs], before, rtol=0, atol=0)
    assert_close(dict(kernel.state_dict()), state, rtol=0, atol=0)


@at_places(CASES, {"odd": PLACES["odd"]})
def test_a_copy_and_a_loaded_kernel_give_the_same_output(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place), place.inputs()
    expected = kernel(*inputs)
    assert_close(copy.deepcopy(kernel)(*inputs), expected, rtol=0, atol=0)
    assert_close(pickle.loads(pickle.dumps(kernel))(*inputs), expected, rtol=0, atol=0)
    other = case.make(place, seed=4)
    other.load_state_dict(kernel.state_dict())
    assert_close(other(*inputs), expected, rtol=0, atol=0)


# An exact inverse of a nearly singular matrix magnifies any rounding without bound; the iteration's six steps do not.
ROUNDABLE = [case for case in CASES if "iterations" not in case.options or case.options["iterations"]]
BFLOAT16_ROUNDING = 2**-8


@at_places(ROUNDABLE, {**{name: PLACES[name] for name in ("odd", "wide values", "fewer queries")}, "long": LONG})
def test_bfloat16_costs_a_few_roundings(case: Case, place: Place) -> None:
    kernel = case.make(place, torch.float32)
    rounded = [tensor.detach().bfloat16() for tensor in place.inputs(torch.float32)]
    half, single = (
        [tensor.to(dtype).requires_grad_() for tensor in rounded] for dtype in (torch.bfloat16, torch.float)
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = kernel(*half)
    expected = kernel(*single)
    # Measured over 20 seeds: at most 4 roundings (Linformer, which sums 127 keys by an unnormalised matrix).
    assert worst(out, expected) < 8 * BFLOAT16_ROUNDING
    for actual, gradient in zip(gradients(out, half), gradients(expected, single), strict=True):
        # Measured: at most 14 roundings (Nyström, through its inverse), 4 for all others.
        assert worst(actual, gradient) < 24 * BFLOAT16_ROUNDING


@at_places(CASES, {"odd": PLACES["odd"]})
def test_backward_may_run_under_autocast(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place, torch.float32), place.inputs(torch.float32)
    # torch advises against it, and rounds what autograd multiplies; still nothing may break.
    with torch.autocast("cpu", torch.bfloat16):
        for gradient in gradients(kernel(*inputs), inputs):
            assert gradient.dtype == torch.float32
            assert gradient.isfinite().all()


@at_places(ROUNDABLE, {"odd": PLACES["odd"], "fewer keys": PLACES["fewer keys"], "long": LONG})
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "pure"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_finite_from_small_to_large(
    case: Case, place: Place, scale: float, autocast: bool, dtype: torch.dtype
) -> None:
    kernel = case.make(place, torch.float32 if autocast else dtype)
    inputs = [(scale * tensor.detach()).to(dtype).requires_grad_() for tensor in place.inputs()]
    with torch.autocast("cpu", dtype, enabled=autocast):
        out = kernel(*inputs)
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(out, inputs))


@at_places(ROUNDABLE, {"odd": PLACES["odd"], "long": LONG})
def test_queries_and_keys_of_any_size_give_finite_values_and_gradients(case: Case, place: Place) -> None:
    kernel = case.make(place, torch.float32)
    q, k, v = place.inputs(torch.float32)
    for scale in (1e-6, 30.0, 1e4):
        out = kernel(scale * q, scale * k, v)
        assert out.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients(out, (q, k, v)))


@at_places([Case(kernel) for kernel in KERNELS], {"odd": PLACES["odd"]})
def test_it_compiles_to_one_graph(case: Case, place: Place) -> None:
    kernel, inputs = case.make(place), place.inputs()
    learned = (*inputs, *kernel.parameters())
    torch.compiler.reset()
    out, expected = torch.compile(kernel, backend="aot_eager", fullgraph=True)(*inputs), kernel(*inputs)
    assert_close(out, expected)
    assert_close(gradients(out, learned), gradients(expected, learned))

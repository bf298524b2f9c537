"""What is true of Nyström attention alone: landmarks, the pseudo-inverse, the convolution of the values."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import reference
from vix import AttentionSpec, NystromAttention
from vix.attention.nystrom import Iterate, iterate
from vix.attention.segments import segment_means, with_means
from vix.tokens import Tokens

ODD, EVEN, OTHER = Tokens((3, 4), prefix=1), Tokens((3, 4)), Tokens((2, 3))


def inputs(queries: Tokens, keys: Tokens | None = None, images: int = 2, heads: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    places = (queries, keys or queries, keys or queries)
    return tuple(torch.randn(images, heads, tokens.count, 8, dtype=torch.float64) for tokens in places)


def nystrom(queries: Tokens, keys: Tokens | None = None, heads: int = 2, **options: Any) -> NystromAttention:
    torch.manual_seed(1)
    return NystromAttention(AttentionSpec(heads, 8, queries, keys or queries), **options).double()


@pytest.mark.parametrize("tokens", [ODD, EVEN, Tokens((1, 1))], ids=str)
def test_every_token_a_landmark_and_an_exact_inverse_give_softmax(tokens: Tokens) -> None:
    q, k, v = inputs(tokens)
    out = nystrom(tokens, num_landmarks=tokens.count, iterations=None, residual_kernel=None)(q, k, v)
    # The matrix among landmarks loses some of float64's 16 digits in its inverse.
    assert_close(out, reference.softmax(q, k, v), rtol=1e-8, atol=1e-8)


def test_enough_steps_of_the_iteration_give_softmax_too() -> None:
    q, k, v = inputs(ODD)
    exact = reference.softmax(q, k, v)
    steps = [1, 3, 6, 12, 24]
    errors = [
        (nystrom(ODD, num_landmarks=64, iterations=step, residual_kernel=None)(q, k, v) - exact).norm().item()
        / exact.norm().item()
        for step in steps
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


def test_left_out_landmarks_are_64_or_a_quarter_of_the_tokens() -> None:
    counts = [1, 7, 65, 256, 1025]
    assert [nystrom(ODD).landmarks(count, count) for count in counts] == [1, 1, 16, 64, 64]
    assert nystrom(ODD).landmarks(1025, 64) == 16
    assert nystrom(ODD, as_published=True).landmarks(65, 65) == 64
    q, k, v = inputs(Tokens((5, 5)))
    assert_close(nystrom(Tokens((5, 5)))(q, k, v), nystrom(Tokens((5, 5)), num_landmarks=6)(q, k, v))


def test_landmarks_beyond_the_tokens_are_clamped() -> None:
    q, k, v = inputs(ODD)
    assert_close(nystrom(ODD, num_landmarks=1000)(q, k, v), nystrom(ODD, num_landmarks=ODD.count)(q, k, v))
    q, k, v = inputs(ODD, OTHER)
    clamped, asked = (nystrom(ODD, OTHER, num_landmarks=count, residual_kernel=None) for count in (64, OTHER.count))
    assert_close(clamped(q, k, v), asked(q, k, v))


def test_exact_inverse_keeps_a_constant_value() -> None:
    q, k, v = inputs(ODD)
    same = v[..., :1, :].expand_as(v)
    assert_close(nystrom(ODD, num_landmarks=4, iterations=None, residual_kernel=None)(q, k, same), same)


@pytest.mark.parametrize(("count", "segments"), [(12, 4), (13, 4), (15, 4), (5, 5), (7, 1), (9, 8)])
def test_landmarks_are_means_of_runs_of_nearly_equal_length(count: int, segments: int) -> None:
    x = torch.randn(2, 2, count, 3, dtype=torch.float64)
    expected = torch.stack([run.mean(-2) for run in x.tensor_split(segments, dim=-2)], dim=-2)
    assert_close(segment_means(x, segments), expected)
    assert_close(reference.landmark_means(x, segments), expected)


@pytest.mark.parametrize(("count", "segments"), [(12, 4), (13, 4), (5, 5), (7, 1), (1, 1)])
def test_tokens_with_their_means_join_both_gradients(count: int, segments: int) -> None:
    x = torch.randn(2, 2, count, 3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for tokens, means in (with_means(x, segments), (x, segment_means(x, segments))):
        assert_close(tokens, x)
        assert_close(means, segment_means(x, segments))
        out = (tokens.sin() * torch.arange(3.0)).sum() + (means.cos() * torch.arange(1.0, 4.0)).sum()
        gradients += torch.autograd.grad(out, x)
    assert_close(*gradients)
    alone = torch.autograd.grad(with_means(x, segments)[1].sum(), x)[0]
    assert_close(alone, torch.autograd.grad(segment_means(x, segments).sum(), x)[0])


def test_filters_see_their_own_head_and_half_their_length_to_each_side() -> None:
    kernel, (q, k, v) = nystrom(ODD, residual_kernel=5), inputs(ODD)
    without = nystrom(ODD, residual_kernel=None)
    touched = torch.zeros_like(v)
    touched[:, 0, 6] = 1
    difference = kernel(q, k, v + touched) - kernel(q, k, v) - (without(q, k, v + touched) - without(q, k, v))
    reached = difference.abs().amax((0, -1)) > 1e-12
    assert reached[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
    assert not reached[1].any()


def test_published_rule_lets_batch_mates_in_and_the_default_does_not() -> None:
    q, k, v = inputs(ODD)
    q[1] *= 4
    for as_published in (False, True):
        kernel = nystrom(ODD, num_landmarks=4, as_published=as_published)
        alone = kernel(q[:1], k[:1], v[:1])
        moved = ((kernel(q, k, v)[:1] - alone).norm() / alone.norm()).item()
        assert moved > 1e-3 if as_published else moved < 1e-12


def test_published_rule_is_the_default_for_one_head_of_one_image_that_needs_no_zeros() -> None:
    q, k, v = inputs(EVEN, images=1, heads=1)
    outs = [nystrom(EVEN, heads=1, num_landmarks=4, as_published=flag)(q, k, v) for flag in (False, True)]
    assert_close(*outs)


@pytest.mark.parametrize("options", [{"residual_kernel": 3}, {"residual_kernel": None, "as_published": True}])
def test_other_keys_than_queries_rule_out_the_convolution_and_the_published_zeros(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"queries \(13 .*\) and keys \(6 .*\) differ.* residual_kernel=None"):
        nystrom(ODD, OTHER, **options)


def test_named_systems_know_what_other_keys_need() -> None:
    nystrom(ODD, OTHER, **NystromAttention.options_for_other_keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks must be a positive whole number, got 0"),
        ({"iterations": 0}, "iterations must be positive, or None for the exact pseudo-inverse, got 0"),
        ({"residual_kernel": 4}, "residual_kernel must be odd and positive, or None for no convolution, got 4"),
        ({"residual_kernel": -1}, "residual_kernel must be odd and positive"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nystrom(ODD, **options)


def test_it_approaches_softmax_by_a_convolution_that_adds_nothing_yet() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 6, 4, dtype=torch.float64)
    kernel = NystromAttention(AttentionSpec(2, 4, Tokens((2, 3)), Tokens((2, 3))), num_landmarks=6, iterations=None)
    kernel.double().approach_softmax()
    out = kernel(q, k, v)
    torch.testing.assert_close(out, reference.softmax(q, k, v))
    out.sum().backward()
    assert kernel.residual is not None
    assert kernel.residual.weight.grad is not None
    assert kernel.residual.weight.grad.abs().max() > 0


@pytest.mark.parametrize("least", [1, 1000], ids=["many", "few"])
@pytest.mark.parametrize("batch_start", [True, False])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(("landmarks", "iterations"), [(1, 6), (2, 1), (5, 6), (8, 3)])
def test_written_out_gradient_of_the_iteration_is_that_of_autograd(
    monkeypatch: pytest.MonkeyPatch, landmarks: int, iterations: int, copies: bool, batch_start: bool, least: int
) -> None:
    monkeypatch.setattr("vix.attention.nystrom.KEEP_POWERS", least)
    torch.manual_seed(0)
    a = (2 * torch.randn(3, landmarks, landmarks, dtype=torch.float64)).softmax(dim=-1).requires_grad_()
    block = torch.randn(3, landmarks, 4, dtype=torch.float64).requires_grad_()
    roots = torch.arange(1, landmarks + 1, dtype=torch.float64).sqrt()[:, None] if copies else None
    given = (roots, iterations, batch_start)
    out, expected = Iterate.apply(a, block, *given), iterate(a, block, *given)
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, (a, block), cotangent), torch.autograd.grad(expected, (a, block), cotangent))


@pytest.mark.parametrize("batch_start", [True, False])
def test_equally_large_columns_share_the_gradient_of_their_peak(batch_start: bool) -> None:
    torch.manual_seed(0)
    # Of one head all four columns sum to exactly one, of the other two to exactly two.
    around = torch.tensor([0.75, 0.25, 0, 0], dtype=torch.float64)
    uneven = torch.tensor([[0.75, 0.25, 0, 0], [0.25, 0.75, 0, 0]] * 2, dtype=torch.float64)
    a = torch.stack([torch.stack([around.roll(row) for row in range(4)]), uneven]).requires_grad_()
    block = torch.randn(2, 4, 3, dtype=torch.float64)
    # One step is far from the inverse, so that the peak still matters.
    given = (block, None, 1, batch_start)
    grads = [torch.autograd.grad(way(a, *given).square().sum(), a)[0] for way in (Iterate.apply, iterate)]
    assert_close(grads[0], grads[1])


def test_kept_powers_change_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(ODD))
    grads = []
    for least in (1, 1000):
        monkeypatch.setattr("vix.attention.nystrom.KEEP_POWERS", least)
        kernel = nystrom(ODD, num_landmarks=5)
        cotangent = torch.ones_like(v)
        grads.append(torch.autograd.grad(kernel(q, k, v), (q, k, v), cotangent))
    assert_close(grads[0], grads[1])

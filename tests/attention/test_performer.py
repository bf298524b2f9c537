"""What is true of Performer alone: how its error to softmax falls, and what its random features are."""

import math
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import reference
from vix import AttentionSpec, Performer
from vix.attention.performer import orthogonal_features
from vix.tokens import Tokens

TOKENS = Tokens((8, 8), prefix=1)
DRAWS = 24
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


def draw(width: int, deviation: float, images: int = 1, shift: float = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k of the given standard deviation and v of one; `shift` is that of what all tokens have in common."""
    q, k, v = (torch.randn(images, 1, TOKENS.count, width, dtype=torch.float64) for _ in range(3))
    q, k = deviation * q, deviation * k
    if shift:
        q, k = (x + shift * torch.randn(images, 1, 1, width, dtype=torch.float64) for x in (q, k))
    return q, k, v


def performer(width: int, features: int | None = None, as_published: bool = False) -> Performer:
    return Performer(AttentionSpec(1, width, TOKENS, TOKENS), features=features, as_published=as_published).double()


def errors(width: int, deviation: float, features: int | None = None, shift: float = 0) -> list[float]:
    """Mean relative errors to softmax of the default, the published rule and mean(v), each with its own draws."""
    torch.manual_seed(0)
    total = [0.0, 0.0, 0.0]
    for _ in range(DRAWS):
        q, k, v = draw(width, deviation, shift=shift)
        exact, default = reference.softmax(q, k, v), performer(width, features)
        published = performer(width, features, as_published=True)
        for row, out in enumerate((default(q, k, v), published(q, k, v), v.mean(-2, keepdim=True))):
            total[row] += ((out - exact).norm() / exact.norm()).item() / DRAWS
    return total


@pytest.mark.parametrize(
    ("width", "deviation", "fewest"),
    [(16, 0.1, 64), (16, 0.25, 64), (32, 0.1, 64), (32, 0.25, 64), (64, 0.1, 128), (64, 0.25, 128), (32, 0.5, 512)],
)
def test_error_to_softmax_falls_with_the_root_of_the_number_of_features(
    width: int, deviation: float, fewest: int
) -> None:
    # From one whole basis and its opposites on, which a basis with gaps is far from. With few features and large logits
    # the regulariser takes most of the error away, which flattens the slope.
    counts = [fewest * 2**doubling for doubling in range(6)]
    x = torch.tensor(counts, dtype=torch.float64).log()
    y = torch.tensor([errors(width, deviation, features)[0] for features in counts], dtype=torch.float64).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    sys.stdout.write(f"width {width}, deviation {deviation}: slope {slope:.3f}, errors {y.exp().tolist()}\n")
    assert slope.item() == pytest.approx(-0.5, abs=0.15)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_default_errs_less_than_the_published_rule(width: int) -> None:
    # By most where products are small, which pairs of opposite directions are for, and where tokens have something in
    # common, as in trained nets, where the mean of a layer's queries is longer than what remains. At a
    # width of 64 the largest products, where both err more than the mean of the values, show the 10 features fewer.
    places = [(deviation, shift) for deviation in (0.1, 0.25, 0.5) for shift in (0, 0.5, 1.0)]
    table = [errors(width, deviation, shift=shift) for deviation, shift in places]
    sys.stdout.write(f"\nrelative error to softmax, heads of width {width}, {TOKENS}, mean of {DRAWS} draws\n")
    sys.stdout.write(
        "deviation + shift " + "".join(f" {deviation:4.2f}+{shift:3.1f}" for deviation, shift in places) + "\n"
    )
    for row, name in enumerate(("default", "as published", "mean(v)")):
        sys.stdout.write(f"{name:18}" + "".join(f"{column[row]:9.4f}" for column in table) + "\n")
    for (deviation, shift), (default, published, mean) in zip(places, table, strict=True):
        assert default <= published * (
            0.8 if deviation == 0.5 and shift else {0.1: 0.25, 0.25: 0.6, 0.5: 1.05 if width == 64 else 1.0}[deviation]
        )
        assert default < mean or deviation == 0.5


def test_a_shift_of_all_keys_changes_nothing_and_one_of_all_queries_costs_nothing() -> None:
    q, k, v = draw(32, 0.25)
    kernel, shift = performer(32, 2048), torch.randn(2, 1, 32, dtype=torch.float64)
    out, exact = kernel(q, k, v), reference.softmax(q, k, v)
    assert_close(kernel(q, k + 3 * shift[0], v), out)
    error = (kernel(q + shift[1], k, v) - reference.softmax(q + shift[1], k, v)).norm() / exact.norm()
    assert error <= 1.5 * (out - exact).norm() / exact.norm()


def test_error_falls_at_a_larger_deviation_too() -> None:
    assert errors(32, 0.5, 2048)[0] < 0.5 * errors(32, 0.5, 64)[0]


@pytest.mark.parametrize("as_published", [False, True], ids=["default", "as published"])
def test_output_is_a_weighted_mean_of_the_values(as_published: bool) -> None:
    q, k, v = draw(8, 1.0)
    out = performer(8, as_published=as_published)(q, k, v)
    assert (out.amax(-2) <= v.amax(-2)).all()
    assert (out.amin(-2) >= v.amin(-2)).all()


def test_order_of_keys_does_not_matter() -> None:
    (q, k, v), kernel, order = draw(8, 1.0), performer(8), torch.randperm(TOKENS.count)
    assert_close(kernel(q, k[..., order, :], v[..., order, :]), kernel(q, k, v))


def test_published_rule_lets_batch_mates_in_and_the_default_does_not() -> None:
    torch.manual_seed(0)
    q, k, v = draw(32, 0.5, images=2)
    k[1] *= 4
    kernel = performer(32)
    assert_close(kernel(q, k, v)[:1], kernel(q[:1], k[:1], v[:1]))
    kernel.as_published = True
    alone = kernel(q[:1], k[:1], v[:1])
    assert (kernel(q, k, v)[:1] - alone).norm() > 0.05 * alone.norm()


@pytest.mark.parametrize("opposite", [True, False])
@pytest.mark.parametrize(("count", "width"), [(8, 8), (20, 8), (5, 8), (1, 8), (110, 32)])
def test_features_are_orthogonal_within_each_block(count: int, width: int, opposite: bool) -> None:
    features = orthogonal_features(count, width, opposite=opposite).double()
    assert features.shape == (count, width)
    drawn = -(-count // 2) if opposite else count
    assert_close(features[drawn:], -features[: count - drawn])
    for block in features[:drawn].split(width):
        gram = block @ block.mT
        # Drawn in float32.
        assert_close(gram, torch.diag(gram.diagonal()), atol=1e-4, rtol=0)


def test_directions_are_uniform_on_the_sphere() -> None:
    torch.manual_seed(0)
    draws, width = 4000, 8
    directions = torch.stack(
        [torch.nn.functional.normalize(orthogonal_features(width, width, opposite=False)) for _ in range(draws)]
    )
    # Every coordinate of every row has mean 0 and variance 1/d; in standard errors, the largest of 64 is about 2.5.
    # Householder's QR without its signs fails here by far: all its first directions lie in one half-space.
    mean_error = directions.mean(0) / math.sqrt(1 / width / draws)
    assert mean_error.abs().max() < 4.5
    covariance = torch.einsum("bri,brj->rij", directions, directions) / draws
    # The variance of a product of two coordinates is at most that of a square: 2 (d - 1) / (d^2 (d + 2)).
    error = (covariance - torch.eye(width) / width) / math.sqrt(2 * (width - 1) / (width**2 * (width + 2)) / draws)
    assert error.abs().max() < 5


def test_lengths_are_those_of_gaussian_vectors() -> None:
    torch.manual_seed(0)
    width = 8
    squares = torch.cat([orthogonal_features(width, width, opposite=False) for _ in range(2000)]).square().sum(-1)
    # Chi-squared with d degrees of freedom: mean d, variance 2 d; 16,000 rows.
    assert squares.mean().item() == pytest.approx(width, rel=0.02)
    assert squares.var().item() == pytest.approx(2 * width, rel=0.06)


def estimates(x: Tensor, y: Tensor, opposite: bool) -> Tensor:
    """Many estimates of exp(x y), each of as many features as a vector is wide."""
    width = len(x)
    features = torch.stack([orthogonal_features(width, width, opposite=opposite) for _ in range(4000)]).double()
    return torch.exp(features @ (x + y) - (x @ x + y @ y) / 2).mean(-1)


@pytest.mark.parametrize("opposite", [True, False])
def test_features_estimate_the_exponential_of_a_product_without_bias(opposite: bool) -> None:
    torch.manual_seed(0)
    x, y = 0.4 * torch.randn(2, 8, dtype=torch.float64)
    found = estimates(x, y, opposite)
    error = (found.mean() - torch.exp(x @ y)) / (found.std() / math.sqrt(len(found)))
    assert abs(error.item()) < 4


def test_features_of_opposite_directions_err_less_by_at_least_the_factor_of_the_paper() -> None:
    # Lemma 2, of independent directions: 1 - exp(-|x + y|^2) of the variance of as many single ones.
    torch.manual_seed(0)
    width = 8
    direction = torch.nn.functional.normalize(torch.randn(width, dtype=torch.float64), dim=0)
    for length in (0.2, 0.5, 1.0):
        x = length / 2 * direction
        ratio = estimates(x, x, True).var() / estimates(x, x, False).var()
        sys.stdout.write(f"|x + y| {length}: variance {ratio.item():.3f}\n")
        assert ratio.item() < 1.1 * (1 - math.exp(-(length**2)))


def test_error_is_the_same_however_a_width_is_shared_between_queries_and_keys() -> None:
    q, k, v = draw(32, 0.25)
    kernel, share = performer(32), (1.5 * torch.randn(32, dtype=torch.float64)).exp()
    assert_close(kernel(q * share, k / share, v), kernel(q, k, v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 1e-4, 3.0])
def test_queries_or_keys_that_are_all_alike_give_a_number_and_a_gradient(level: float) -> None:
    q, k, v = (x.float().requires_grad_() for x in draw(8, 1.0))
    same = (level * torch.ones_like(q)).detach().requires_grad_()
    for first, second in ((same, k), (q, same), (same, same)):
        out = performer(8).float()(first, second, v)
        assert out.isfinite().all()
        for grad in torch.autograd.grad(out.square().sum(), {first, second, v}):
            assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("width", "published", "ours"), [(16, 44, 32), (32, 110, 96), (64, 266, 256), (2, 1, 2), (1, 1, 1)]
)
def test_features_left_out_are_d_ln_d_and_by_default_whole_blocks(width: int, published: int, ours: int) -> None:
    assert performer(width, as_published=True).projection.shape == (published, width)
    assert performer(width).projection.shape == (ours, width)


def test_features_survive_a_checkpoint_and_do_not_learn() -> None:
    kernel = performer(8)
    assert set(kernel.state_dict()) == {"projection"}
    assert not list(kernel.parameters())


def test_more_features_than_any_machine_holds_are_refused_at_once() -> None:
    with pytest.raises((RuntimeError, TypeError)):
        orthogonal_features(10**30, 8, opposite=True)


def test_features_must_be_positive() -> None:
    with pytest.raises(ValueError, match="features must be positive, or None for the"):
        performer(8, features=0)


def test_features_are_redrawn_after_every_so_many_steps_and_the_count_survives_a_checkpoint() -> None:
    spec = AttentionSpec(1, 8, TOKENS, TOKENS)
    kernel, q = Performer(spec, redraw=3), torch.randn(1, 1, 4, 8)
    drawn = []
    for _ in range(7):
        # passes alone, of which a step may have several, count nothing
        kernel(q, q, q)
        kernel.after_step()
        drawn.append(kernel.projection.clone())
    changed = [not torch.equal(*pair) for pair in pairwise(drawn)]
    assert changed == [False, True, False, False, True, False]
    unit = torch.nn.functional.normalize(drawn[-1][:8], dim=-1)
    assert torch.equal(drawn[-1][8:], -drawn[-1][:8])
    torch.testing.assert_close(unit @ unit.T, torch.eye(8), rtol=0, atol=1e-5)
    again = Performer(spec, redraw=3)
    again.load_state_dict(kernel.state_dict())
    for expected in (False, True):
        before = again.projection.clone()
        again.after_step()
        assert torch.equal(before, again.projection) is not expected


def test_without_redraw_steps_change_nothing() -> None:
    kernel = performer(8)
    before = kernel.projection.clone()
    kernel.after_step()
    assert torch.equal(before, kernel.projection)
    with pytest.raises(ValueError, match="redraw must be positive, or None for never, got 0"):
        Performer(AttentionSpec(1, 8, TOKENS, TOKENS), redraw=0)

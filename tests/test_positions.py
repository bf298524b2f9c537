"""Where tokens stand: rotations that know displacement only, and a table that knows one size."""

import pytest
import torch
from torch.testing import assert_close

from tests import reference
from vix.positions import LearnedPosition, RotaryPosition, rotate
from vix.tokens import Tokens

TOKENS, D = Tokens((3, 5), prefix=1), 8
# Tables are float32 whatever turns by them.
TABLE = {"atol": 1e-6, "rtol": 1e-6}


def heads(tokens: Tokens, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, tokens.count, D, dtype=torch.float64).to(dtype)


def angles_of(tokens: Tokens, axial: bool) -> torch.Tensor:
    if axial:
        return reference.rope_axial_angles(*tokens.grid, tokens.prefix, D)
    return reference.rope_angles(tokens.count, D)


def scores(rotary: RotaryPosition, tokens: Tokens) -> torch.Tensor:
    """Scores (n n) of one query vector and one key vector, put at every position."""
    torch.manual_seed(1)
    q, k = torch.randn(2, D, dtype=torch.float64)
    turned_q, turned_k = (rotary(x.expand(1, 1, tokens.count, D), tokens)[0, 0] for x in (q, k))
    return turned_q @ turned_k.mT


@pytest.mark.parametrize("axial", [False, True], ids=["rope", "rope_axial"])
@pytest.mark.parametrize("tokens", [TOKENS, Tokens((4, 4)), Tokens((1, 7), prefix=2)], ids=str)
def test_pairs_are_turned_by_the_formula(axial: bool, tokens: Tokens) -> None:
    x = heads(tokens)
    rotary = RotaryPosition(tokens, D, axial=axial)
    assert_close(rotary(x, tokens), reference.turned(x, angles_of(tokens, axial)), **TABLE)


@pytest.mark.parametrize("axial", [False, True], ids=["rope", "rope_axial"])
def test_gradients_are_those_of_finite_differences(axial: bool) -> None:
    rotary, x = RotaryPosition(TOKENS, D, axial=axial), heads(TOKENS)[:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotary(x, TOKENS), (x,))


def test_scores_along_the_sequence_depend_on_displacement_only() -> None:
    table = scores(RotaryPosition(TOKENS, D), TOKENS)
    for displacement in range(-TOKENS.count + 1, TOKENS.count):
        diagonal = table.diagonal(displacement)
        assert_close(diagonal, diagonal[:1].expand_as(diagonal), **TABLE)
    assert table[0].diff().abs().min() > 1e-4


def test_axial_scores_depend_on_displacement_only() -> None:
    table = scores(RotaryPosition(TOKENS, D, axial=True), TOKENS)[1:, 1:].unflatten(0, (3, 5)).unflatten(2, (3, 5))
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for y, x, other_y, other_x in torch.cartesian_prod(*(torch.arange(side) for side in (3, 5, 3, 5))).tolist():
        score = table[y, x, other_y, other_x]
        assert_close(score, seen.setdefault((other_y - y, other_x - x), score), **TABLE)
    assert len(seen) == 5 * 9
    # Displacements that differ in either axis have scores of their own.
    assert torch.stack(list(seen.values())).unique().numel() == len(seen)


def test_class_tokens_stay_unturned_on_two_axes() -> None:
    tokens = Tokens((3, 5), prefix=2)
    x = heads(tokens)
    turned = RotaryPosition(tokens, D, axial=True)(x, tokens)
    assert_close(turned[..., :2, :], x[..., :2, :], rtol=0, atol=0)
    # So is the first token of the grid, whose y and x are 0.
    assert_close(turned[..., 2, :], x[..., 2, :], rtol=0, atol=0)
    assert not torch.isclose(turned[..., 3:, :], x[..., 3:, :]).all(-1).any()


def test_along_the_sequence_the_class_token_is_position_zero_as_published() -> None:
    x = heads(TOKENS)
    turned = RotaryPosition(TOKENS, D)(x, TOKENS)
    assert_close(turned[..., 0, :], x[..., 0, :], rtol=0, atol=0)
    assert_close(turned[..., 1:2, :], reference.turned(x[..., 1:2, :], reference.rope_angles(2, D)[1:]), **TABLE)


@pytest.mark.parametrize("axial", [False, True], ids=["rope", "rope_axial"])
def test_lengths_are_kept(axial: bool) -> None:
    x = heads(TOKENS)
    assert_close(RotaryPosition(TOKENS, D, axial=axial)(x, TOKENS).norm(dim=-1), x.norm(dim=-1), **TABLE)


@pytest.mark.parametrize("axial", [False, True], ids=["rope", "rope_axial"])
@pytest.mark.parametrize("other", [Tokens((5, 3), prefix=1), Tokens((6, 7), prefix=1), Tokens((2, 2))], ids=str)
def test_other_tokens_are_turned_as_if_it_had_been_made_for_them(axial: bool, other: Tokens) -> None:
    x = heads(other)
    made_for_others, made_for_these = (RotaryPosition(tokens, D, axial=axial) for tokens in (TOKENS, other))
    assert_close(made_for_others(x, other), made_for_these(x, other), rtol=0, atol=0)


@pytest.mark.parametrize("axial", [False, True], ids=["rope", "rope_axial"])
def test_tables_are_not_in_the_checkpoint(axial: bool) -> None:
    rotary = RotaryPosition(TOKENS, D, axial=axial)
    assert not rotary.state_dict()
    assert {name for name, _ in rotary.named_buffers()} == {"cosine", "sine"}
    assert not list(rotary.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_turned_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    tokens = Tokens((32, 32), prefix=1)
    rotary, x = RotaryPosition(tokens, D), heads(tokens, dtype)
    with torch.autocast("cpu", dtype):
        out = rotary(x, tokens)
    assert out.dtype == dtype
    expected = rotary(x.float(), tokens)
    assert_close(out, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("axial", [False, True], ids=["rope", "rope_axial"])
def test_a_net_in_half_precision_knows_far_positions_apart(axial: bool) -> None:
    tokens = Tokens((32, 32), prefix=1)
    rotary, x = RotaryPosition(tokens, D, axial=axial), heads(tokens)
    # net.bfloat16() rounds the table to 8 bits, which still turns within 2^-8.
    out = rotary.bfloat16()(x.bfloat16(), tokens)
    assert_close(out.double(), reference.turned(x, angles_of(tokens, axial)), atol=0.05, rtol=0.02)


def test_angles_of_a_base_of_ones_own() -> None:
    rotary = RotaryPosition(TOKENS, 4, base=7.0)
    assert_close(rotary.angles(TOKENS)[:, 1], torch.arange(16, dtype=torch.float64) / 7**0.5)


@pytest.mark.parametrize(("width", "axial"), [(7, False), (6, True), (1, False), (2, True)])
def test_widths_that_do_not_make_pairs_are_refused(width: int, axial: bool) -> None:
    name, multiple = ("rope_axial", 4) if axial else ("rope", 2)
    with pytest.raises(ValueError, match=f"position='{name}' .*dim_head must be a multiple of {multiple}, got {width}"):
        RotaryPosition(TOKENS, width, axial=axial)


def test_a_turn_by_a_quarter_makes_the_second_of_a_pair_of_the_first() -> None:
    x = torch.tensor([[[[1.0, 0.0, 0.0, 2.0]]]])
    turned = rotate(x, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    assert_close(turned, torch.tensor([[[[0.0, 1.0, -2.0, 0.0]]]]))


def test_learned_positions_are_added_and_never_decay() -> None:
    position = LearnedPosition(TOKENS, 6)
    x = torch.randn(2, TOKENS.count, 6)
    assert_close(position(x, TOKENS), x + position.table)
    assert position.undecayed == ("table",)


@pytest.mark.parametrize("other", [Tokens((5, 3), prefix=1), Tokens((3, 5)), Tokens((4, 4), prefix=1)], ids=str)
def test_learned_positions_serve_one_grid_and_say_so(other: Tokens) -> None:
    position = LearnedPosition(TOKENS, 6)
    with pytest.raises(ValueError, match="learned positions were built for") as error:
        position(torch.randn(1, other.count, 6), other)
    assert str(TOKENS) in str(error.value)
    assert str(other) in str(error.value)
    assert "\n" not in str(error.value)

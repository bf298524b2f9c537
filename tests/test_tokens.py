"""A sequence of tokens says how long it is, and sizes are read one way everywhere."""

from typing import Any

import pytest

from vix.tokens import Tokens, pair


def test_tokens_count_the_grid_and_the_class_tokens() -> None:
    assert Tokens((3, 5)).count == 15
    assert Tokens((3, 5), prefix=2).count == 17


def test_tokens_are_the_same_if_grid_and_prefix_are() -> None:
    assert Tokens((3, 5), 1) == Tokens((3, 5), prefix=1)
    assert Tokens((3, 5), 1) != Tokens((5, 3), 1)
    assert Tokens((4, 4), 0) != Tokens((3, 5), 1)


def test_tokens_say_their_grid() -> None:
    assert str(Tokens((3, 5))) == "15 tokens (3x5)"
    assert str(Tokens((3, 5), prefix=1)) == "16 tokens (3x5 + 1)"


@pytest.mark.parametrize(("size", "sides"), [(7, (7, 7)), ((3, 5), (3, 5)), ([3, 5], (3, 5))])
def test_a_size_is_a_side_or_a_pair(size: Any, sides: tuple[int, int]) -> None:
    assert pair(size, "image_size") == sides


@pytest.mark.parametrize("size", [0, -1, (3,), (3, 4, 5), (3, 0), (2.0, 3), 2.0, True, "32", None, "ab"])
def test_other_sizes_are_refused_by_name(size: Any) -> None:
    with pytest.raises(ValueError, match=r"^image_size must be a positive whole number or a .* pair") as error:
        pair(size, "image_size")
    assert repr(size) in str(error.value)

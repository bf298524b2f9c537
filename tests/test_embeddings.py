"""From pixels to tokens: which patch, which token sees which pixel, and that none is lost."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vix.embeddings import (
    MOST_TOKENS,
    ConvolutionalEmbedding,
    LinearEmbedding,
    default_patch,
    factorise,
    grid_of,
)


@pytest.mark.parametrize(
    ("image", "patch"),
    [
        ((8, 8), (1, 1)),
        ((32, 32), (1, 1)),
        ((64, 64), (2, 2)),
        ((33, 33), (3, 3)),
        ((224, 224), (7, 7)),
        ((64, 32), (2, 2)),
        ((32, 31), (1, 1)),
        ((33, 47), (3, 1)),
        ((37, 37), (37, 37)),
        ((1, 1), (1, 1)),
    ],
)
def test_default_patch_is_the_smallest_that_gives_few_enough_tokens(
    image: tuple[int, int], patch: tuple[int, int]
) -> None:
    assert default_patch(image) == patch


@pytest.mark.parametrize("image", [(1, 5000), (97, 101), (96, 72), (1024, 1024), (7, 1021)])
def test_default_patch_always_divides_and_always_exists(image: tuple[int, int]) -> None:
    rows, columns = grid_of(image, default_patch(image))
    assert 1 <= rows * columns <= MOST_TOKENS


@pytest.mark.parametrize("stride", range(1, 65))
def test_strides_are_split_into_three_without_loss(stride: int) -> None:
    factors = factorise(stride)
    assert math.prod(factors) == stride
    assert list(factors) == sorted(factors, reverse=True)


@pytest.mark.parametrize(("stride", "factors"), [(8, (2, 2, 2)), (12, (3, 2, 2)), (7, (7, 1, 1)), (36, (4, 3, 3))])
def test_strides_are_split_evenly(stride: int, factors: tuple[int, int, int]) -> None:
    assert factorise(stride) == factors


@pytest.mark.parametrize("embedding", [LinearEmbedding, ConvolutionalEmbedding])
@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (9, 9), (4, 6), (15, 1), (10, 21)], ids=str)
@pytest.mark.parametrize("grid", [(1, 1), (2, 3)], ids=str)
def test_there_is_exactly_one_token_a_patch(
    embedding: type[LinearEmbedding | ConvolutionalEmbedding], patch: tuple[int, int], grid: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, grid[0] * patch[0], grid[1] * patch[1])
    assert embedding(3, 4, patch)(images).shape == (2, *grid, 4)


@pytest.mark.parametrize("embedding", [LinearEmbedding, ConvolutionalEmbedding])
@pytest.mark.parametrize("patch", [(1, 1), (2, 3), (7, 7), (5, 4), (16, 16)], ids=str)
def test_every_pixel_is_seen(embedding: type[LinearEmbedding | ConvolutionalEmbedding], patch: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 2, 3 * patch[0], 2 * patch[1], requires_grad=True)
    embedding(2, 4, patch)(images).sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).all()


def test_linear_embedding_maps_the_values_of_a_patch_by_row_column_channel() -> None:
    torch.manual_seed(0)
    embedding, images = LinearEmbedding(3, 5, (2, 3)).double(), torch.randn(2, 3, 4, 9, dtype=torch.float64)
    tokens = embedding(images)
    for y in range(2):
        for x in range(3):
            patch = images[:, :, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3]
            values = torch.stack([patch[:, c, p, q] for p in range(2) for q in range(3) for c in range(3)], dim=-1)
            assert_close(tokens[:, y, x], values @ embedding.project.weight.T + embedding.project.bias)


def test_normalisations_stand_before_and_after_the_linear_map_where_asked_for() -> None:
    plain, normed = LinearEmbedding(3, 8, (4, 4)), LinearEmbedding(3, 8, (4, 4), norms=True)
    assert set(plain.state_dict()) < set(normed.state_dict())
    tokens = normed(5 * torch.randn(2, 3, 8, 8) + 7)
    assert_close(tokens.mean(-1), torch.zeros(2, 2, 2), atol=1e-5, rtol=0)
    assert_close(normed(torch.full((1, 3, 4, 4), 3.0)), normed(torch.full((1, 3, 4, 4), -8.0)))


def reach(embedding: ConvolutionalEmbedding, images: Tensor, y: int, x: int) -> tuple[range, range]:
    """Rows and columns of the pixels that one token sees."""
    images = images.clone().requires_grad_()
    embedding(images)[0, y, x].sum().backward()
    assert images.grad is not None
    rows, columns = (images.grad[0, 0].abs().sum(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1)


def test_convolutional_embedding_of_single_pixels_sees_seven_by_seven_as_published() -> None:
    embedding = ConvolutionalEmbedding(1, 4, (1, 1))
    assert [tuple(layer.kernel_size) for layer in embedding.stem] == [(3, 3)] * 3
    assert [layer.out_channels for layer in embedding.stem] == [32, 64, 4]
    assert reach(embedding, torch.randn(1, 1, 11, 13), 5, 6) == (range(2, 9), range(3, 10))


@pytest.mark.parametrize("patch", [(2, 2), (3, 3), (4, 4), (6, 5), (8, 8), (9, 7), (16, 16)], ids=str)
def test_a_token_of_the_stem_sees_its_own_patch(patch: tuple[int, int]) -> None:
    torch.manual_seed(0)
    embedding = ConvolutionalEmbedding(1, 4, patch)
    rows, columns = reach(embedding, torch.randn(1, 1, 4 * patch[0], 4 * patch[1]), 1, 2)
    assert rows.start <= patch[0]
    assert rows.stop >= 2 * patch[0]
    assert columns.start <= 2 * patch[1]
    assert columns.stop >= 3 * patch[1]


def test_there_is_nothing_between_the_convolutions_as_published() -> None:
    torch.manual_seed(0)
    embedding = ConvolutionalEmbedding(2, 4, (2, 2)).double()
    one, other, nothing = torch.randn(3, 1, 2, 8, 8, dtype=torch.float64)[:3]
    nothing = torch.zeros_like(one)
    assert_close(embedding(one + other), embedding(one) + embedding(other) - embedding(nothing))


@pytest.mark.parametrize("embedding", [LinearEmbedding, ConvolutionalEmbedding])
def test_a_patch_that_does_not_divide_is_an_error_that_names_what_does(
    embedding: type[LinearEmbedding | ConvolutionalEmbedding],
) -> None:
    with pytest.raises(
        ValueError, match="patch_size 5x5 does not divide image_size 32x12: the height takes 1, 2, 4, 8"
    ):
        embedding(3, 4, (5, 5))(torch.randn(1, 3, 32, 12))


@pytest.mark.parametrize(
    ("image", "takes"),
    [((12, 12), "the height takes 1, 2, 3, 4, 6, 12"), ((12, 9), "the height takes .*; the width takes 1, 3, 9")],
)
def test_what_divides_is_listed_for_each_side(image: tuple[int, int], takes: str) -> None:
    with pytest.raises(ValueError, match=takes) as error:
        grid_of(image, (5, 3))
    assert "\n" not in str(error.value)

"""What is true of Linformer alone: a matrix that belongs to one number of keys."""

import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

from tests import reference
from vix import AttentionSpec, Linformer
from vix.tokens import Tokens

ODD, OTHER = Tokens((3, 4), prefix=1), Tokens((2, 3))


def inputs(queries: Tokens, keys: Tokens) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, 2, tokens.count, 8, dtype=torch.float64) for tokens in (queries, keys, keys))


def test_identity_as_projection_gives_softmax() -> None:
    kernel = Linformer(AttentionSpec(2, 8, OTHER, ODD), rank=ODD.count).double()
    with torch.no_grad():
        kernel.project_keys.copy_(torch.eye(ODD.count))
    q, k, v = inputs(OTHER, ODD)
    assert_close(kernel(q, k, v), reference.softmax(q, k, v))


def test_order_of_keys_does_not_matter_if_rows_of_the_projection_follow() -> None:
    kernel = Linformer(AttentionSpec(2, 8, ODD, ODD), rank=4).double()
    q, k, v = inputs(ODD, ODD)
    expected, order = kernel(q, k, v), torch.randperm(ODD.count)
    with torch.no_grad():
        kernel.project_keys.copy_(kernel.project_keys[order])
    assert_close(kernel(q, k[..., order, :], v[..., order, :]), expected)


def test_another_number_of_keys_is_an_error_that_names_both() -> None:
    kernel = Linformer(AttentionSpec(2, 8, ODD, ODD)).double()
    with pytest.raises(ValueError, match=r"built for 13 tokens \(3x4 \+ 1\), got 6") as error:
        kernel(*inputs(ODD, OTHER))
    assert "\n" not in str(error.value)


def test_any_number_of_queries_will_do() -> None:
    kernel = Linformer(AttentionSpec(2, 8, ODD, ODD), rank=4).double()
    q, k, v = inputs(OTHER, ODD)
    assert_close(kernel(q, k, v), reference.linformer(q, k, v, kernel.project_keys, kernel.project_keys))


def test_values_have_a_matrix_of_their_own_if_not_shared() -> None:
    spec = AttentionSpec(2, 8, ODD, ODD)
    assert [name for name, _ in Linformer(spec).named_parameters()] == ["project_keys"]
    own = Linformer(spec, share_projection=False)
    assert [name for name, _ in own.named_parameters()] == ["project_keys", "project_values"]
    assert not torch.equal(own.project_keys, own.project_values)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("sizes", [(16, 16, 16), (16, 16), (16, 8, 8), (16, 8)], ids=str)
@pytest.mark.parametrize("count", [None, 1, 2, 5, 13])
def test_tokens_attend_as_their_queries_keys_and_values_do_and_gradients_join(
    share: bool, sizes: tuple[int, ...], count: int | None
) -> None:
    kernel = Linformer(AttentionSpec(2, 8, ODD, ODD), rank=9, share_projection=share).double()
    x = torch.randn(3, ODD.count, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(sizes), 6, dtype=torch.float64, requires_grad=True)

    def join(x: torch.Tensor, weight: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return kernel.from_tokens(x, weight, sizes, count)

    matrices = [*kernel.parameters()]
    heads = [rearrange(x @ rows.mT, "b n (h d) -> b h n d", d=8) for rows in weight.split(sizes)]
    q, k, v = (part.expand(-1, 2, -1, -1) for part in (heads[0][..., :count, :], heads[1], heads[-1]))
    expected = reference.linformer(q, k, v, matrices[0], matrices[-1])
    out = join(x, weight)
    assert_close(out, expected)
    assert torch.autograd.gradcheck(join, (x, weight, *matrices))
    # Whatever is not asked for, the rest is right: tokens or weights without a gradient, a matrix that is frozen.
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, weight, *matrices], cotangent)
    assert_close(torch.autograd.grad(join(x.detach(), weight.detach()), matrices, cotangent), wanted[2:])
    kernel.requires_grad_(False)
    assert_close(torch.autograd.grad(join(x, weight), [x, weight], cotangent), wanted[:2])


def test_few_queries_drop_weights_in_training() -> None:
    kernel = Linformer(AttentionSpec(2, 8, ODD, ODD), rank=9, dropout=0.5).double()
    x, weight = torch.randn(1, ODD.count, 6).double(), torch.randn(48, 6).double()
    given = (x, weight, (16, 16, 16), 1)
    assert not torch.equal(kernel.from_tokens(*given), kernel.from_tokens(*given))
    kernel.eval()
    assert torch.equal(kernel.from_tokens(*given), kernel.from_tokens(*given))


def test_projection_starts_uniform_within_the_published_bound() -> None:
    torch.manual_seed(0)
    matrix = Linformer(AttentionSpec(2, 8, Tokens((32, 32)), Tokens((32, 32))), rank=64).project_keys
    assert matrix.shape == (1024, 64)
    assert matrix.abs().max() <= 64**-0.5
    # A uniform distribution on [-a, a] has standard deviation a / sqrt(3).
    assert matrix.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.02)


def test_dropout_drops_weights_in_training_only() -> None:
    kernel = Linformer(AttentionSpec(2, 8, ODD, ODD), rank=4, dropout=0.5).double()
    q, k, v = inputs(ODD, ODD)
    assert not torch.equal(kernel(q, k, v), kernel(q, k, v))
    kernel.eval()
    assert_close(kernel(q, k, v), reference.linformer(q, k, v, kernel.project_keys, kernel.project_keys))


def test_rank_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rank must be a positive whole number, got 0"):
        Linformer(AttentionSpec(2, 8, ODD, ODD), rank=0)


@pytest.mark.parametrize("share", [True, False])
def test_it_approaches_softmax_by_means_of_neighbours(share: bool) -> None:
    q, k, v = inputs(ODD, ODD)
    expected = reference.softmax(q, k, v)
    for rank in (ODD.count, 5):
        kernel = Linformer(AttentionSpec(2, 8, ODD, ODD), rank=rank, share_projection=share).double()
        before = (kernel(q, k, v) - expected).square().mean()
        kernel.approach_softmax()
        after = (kernel(q, k, v) - expected).square().mean()
        assert after < (1e-20 if rank == ODD.count else before)

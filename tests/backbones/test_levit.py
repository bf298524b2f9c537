"""LeViT: the bias of its attention, attention that shrinks, and BatchNorm that folds away."""

from functools import partial

import pytest
import torch

from tests.backbones.test_pyramids import images, tiny
from vix import LeViN, LeViP, LeViT, NystromAttention, Performer
from vix.backbones.levit import OffsetBias
from vix.backbones.parts import BatchNorm, ConvNorm, LinearNorm
from vix.tokens import Tokens


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [(3, 5), (4, 6), (1, 1), (2, 1)])
def test_the_bias_is_looked_up_by_the_distances_along_both_axes(grid: tuple[int, int], stride: int) -> None:
    bias = OffsetBias(2, Tokens(grid), stride)
    torch.nn.init.normal_(bias.table)
    rows, columns = grid
    expected = [
        [bias.table[:, abs(y - i) * columns + abs(x - j)] for i in range(rows) for j in range(columns)]
        for y in range(0, rows, stride)
        for x in range(0, columns, stride)
    ]
    matrix = torch.stack([torch.stack(row, dim=-1) for row in expected], dim=-2)
    torch.testing.assert_close(bias(Tokens(grid)), matrix, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [Performer, NystromAttention])
def test_a_kernel_without_logits_is_refused_with_the_remedy(kernel: type) -> None:
    with pytest.raises(ValueError, match=f"{kernel.__name__} takes no bias on its logits: give position='values'"):
        LeViT(attention=kernel)


def test_nystrom_needs_to_be_told_that_shrinking_has_no_residual_convolution() -> None:
    with pytest.raises(ValueError, match="give residual_kernel=None"):
        LeViT(attention=NystromAttention, position="values")
    without = partial(NystromAttention, residual_kernel=None)
    LeViT(attention=NystromAttention, shrinking_attention=without, position="values")


def test_levin_has_the_residual_convolution_within_stages_only() -> None:
    kernels = [block.attention.attention for block in LeViN().blocks]
    assert [kernel.residual is None for kernel in kernels] == [False, False, True, False, False, True, False, False]


def test_values_tell_their_place_at_the_places_of_the_queries() -> None:
    net = tiny(LeViP, image_size=(10, 14)).eval()
    shrinking = net.blocks[1].attention
    torch.nn.init.zeros_(shrinking.value_position.weight)
    torch.nn.init.zeros_(shrinking.value_position.bias)
    # A kernel that is 1 in its middle alone leaves the value at the place of each query.
    shrinking.value_position.weight.data[:, :, 1, 1] = 1
    x, tokens = images(1, 10 * 14, 16), Tokens((10, 14))
    _, values = shrinking.keys_values(x).unflatten(-1, (shrinking.heads, -1)).split(shrinking.widths, dim=-1)
    at_queries = values.unflatten(1, (10, 14))[:, ::2, ::2].flatten(1, 2).flatten(-2)
    seen = []
    shrinking.activation.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    shrinking(x, tokens)
    shrinking.attention.forward = lambda q, k, v: torch.zeros(*q.shape[:-1], v.shape[-1])
    shrinking(x, tokens)
    torch.testing.assert_close(seen[1], at_queries)
    assert (seen[0] - seen[1]).abs().max() > 0


@pytest.mark.parametrize("system", [LeViT, LeViN, LeViP])
@torch.no_grad()
def test_fusing_leaves_no_batch_norm_and_the_same_logits(system: type[LeViT]) -> None:
    net = tiny(system, image_size=(24, 17)).eval()
    expected = net(images(2, 3, 24, 17))
    assert net.fuse() is net
    assert not any(isinstance(part, BatchNorm | ConvNorm | LinearNorm | OffsetBias) for part in net.modules())
    torch.testing.assert_close(net(images(2, 3, 24, 17)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_a_fused_net_keeps_its_refusals_and_can_be_fused_again() -> None:
    net = tiny(LeViT).fuse().fuse()
    with pytest.raises(ValueError, match=r"built for 256 tokens \(16x16\), got 64 tokens \(8x8\)"):
        net(images(1, 3, 8, 8))


def test_batch_norm_normalises_as_torch_does() -> None:
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm2d(4)
    for seed in range(3):
        x = 2 + images(3, 4, 5, 6, seed=seed)
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_batch_norm_takes_a_single_value_by_its_running_statistics() -> None:
    norm = BatchNorm(4)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = images(1, 4)
    torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
    torch.testing.assert_close(dict(norm.state_dict()), before)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_the_stem_has_the_stride_that_was_asked_for(stride: int) -> None:
    net = LeViT(image_size=33, stem_stride=stride, depth=1)
    assert net.tokens.grid == (-(-33 // stride),) * 2
    assert net.stem(images(1, 3, 33, 33)).shape == (1, 64, *net.tokens.grid)

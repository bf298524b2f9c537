"""CCT: tokenizer, positions, block and sequence pooling."""

import pytest
import torch
from torch.nn import functional

from tests.backbones.test_pyramids import images
from vix import CCT
from vix.backbones.cct import CCTBlock, SequencePooling, SinePosition, Tokenizer, spread
from vix.measure import parameters
from vix.mixers import SelfAttention
from vix.tokens import Tokens

# Paper, table 1, and the README of its code; with the learned table of positions (`6/3x1`: 3.17 million with sines).
MILLIONS = {"2/3x2": 0.284, "4/3x2": 0.482, "6/3x2": 3.327, "7/3x1": 3.760, "7/3x2": 3.853, "14/7x2": 22.367}


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_presets_have_the_papers_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(parameters(CCT.preset(name)) / 1e6, 3) == millions


def test_cct_7_3x1_has_exactly_the_published_number_of_parameters() -> None:
    assert parameters(CCT.preset("7/3x1")) == 3_760_139


def test_the_published_sizes_are_the_defaults_for_64_pixels() -> None:
    assert parameters(CCT(image_size=64, num_classes=200)) == 666_377


@pytest.mark.parametrize(("stride", "strides"), [(1, (1, 1, 1)), (2, (2, 1, 1)), (8, (2, 2, 2)), (16, (4, 2, 2))])
def test_a_stride_is_spread_over_the_first_convolutions(stride: int, strides: tuple[int, ...]) -> None:
    assert spread(stride, 3) == strides


@pytest.mark.parametrize("side", [8, 15, 33])
@pytest.mark.parametrize(
    ("kernel", "stride", "pool_stride"), [(3, (1,), 2), (7, (2, 2), 2), (3, (2, 1, 1), 1), (5, 3, 1)]
)
def test_the_tokenizer_knows_its_grid(side: int, kernel: int, stride: int | tuple[int, ...], pool_stride: int) -> None:
    net = CCT(image_size=(side, 16), kernel=kernel, stride=stride, pool_stride=pool_stride, depth=1)
    assert net.tokenizer(images(1, 3, side, 16)).shape[-2:] == net.tokens.grid


def test_the_second_residual_starts_from_the_normed_value() -> None:
    tokens = Tokens((2, 3))
    block = CCTBlock(8, SelfAttention(8, tokens, heads=2, dim_head=4), 8, dropout=0, drop_path=0)
    x = images(2, 6, 8)
    torch.nn.init.zeros_(block.mlp.contract.weight)
    torch.nn.init.zeros_(block.mlp.contract.bias)
    attended = x + block.mixer(functional.layer_norm(x, (8,)), tokens)
    torch.testing.assert_close(block(x, tokens), functional.layer_norm(attended, (8,)))


def test_sequence_pooling_weighs_by_a_softmax_over_tokens() -> None:
    pool, x = SequencePooling(4), images(2, 5, 4)
    weights = (x @ pool.weigh.weight[0]).softmax(dim=-1)
    torch.testing.assert_close(pool(x), torch.einsum("bn,bnc->bc", weights, x))


def test_sines_and_cosines_take_turns_and_slow_down() -> None:
    table = SinePosition(Tokens((3, 4)), 6).table
    place = torch.arange(12.0)
    torch.testing.assert_close(table[:, 0], place.sin())
    torch.testing.assert_close(table[:, 1], place.cos())
    torch.testing.assert_close(table[:, 4], (place * 10000 ** (-4 / 6)).sin())


def test_sine_positions_are_neither_learned_nor_saved() -> None:
    net = CCT(position="sine", depth=1)
    assert not [name for name in net.state_dict() if "position" in name]


@pytest.mark.parametrize("sides", [(8, 8), (7, 10), (33, 5), (1, 2)])
@pytest.mark.parametrize("pool_stride", [1, 2])
def test_pooling_before_relu_is_exactly_relu_before_pooling(sides: tuple[int, int], pool_stride: int) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(3, 16, kernel=3, strides=(1, 2), pool_stride=pool_stride).double()
    values = torch.randn(2, 3, *sides, dtype=torch.float64, requires_grad=True)
    out = tokenizer(values)
    direction = torch.randn_like(out)
    wanted = values
    for weight, stride in zip(tokenizer.parameters(), (1, 2), strict=True):
        wanted = functional.relu(functional.conv2d(wanted, weight, stride=stride, padding=1))
        wanted = functional.max_pool2d(wanted, 3, pool_stride, padding=1)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    inputs = [values, *tokenizer.parameters()]
    for ours, plain in zip(
        torch.autograd.grad(out, inputs, direction), torch.autograd.grad(wanted, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)

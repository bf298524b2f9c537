import copy

import pytest
import torch

import vix
from tests.nets import images, tiny
from vix.checkpointing import worth_recomputing
from vix.measure import bytes_kept, count_flops
from vix.systems import CvT, LeViN, ViT


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1], 1),
        ([8, 8, 8, 8], 4),
        ([9, 9, 1], 2),
        ([16, 16, 4, 1, 1], 2),
        ([16, 16, 6, 1, 1], 3),
        ([4, 1], 2),
        ([1, 10, 1], 2),
    ],
    ids=str,
)
def test_small_blocks_at_the_end_are_not_computed_again(sizes: list[int], expected: int) -> None:
    assert worth_recomputing(sizes) == expected


def test_the_bodies_leave_them_out_and_only_them() -> None:
    # By tokens and width: 1024 x 64 three times, 256 x 96 three times, 64 x 128 twice.
    assert LeViN(image_size=32).recomputed == 5
    # 1024 x 32, 256 x 64 twice, 65 x 128 three times.
    assert CvT(image_size=32).recomputed == 5


def test_the_last_product_of_a_block_is_not_made_again() -> None:
    net = tiny(ViT, pool="mean")
    batch, n = images(net, 3), net.tokens.count

    def step() -> int:
        return count_flops(lambda: net(batch).sum().backward())

    forward, plain = count_flops(lambda: net(batch)), step()
    net.set_grad_checkpointing()
    contract, head = 2 * 3 * n * 24 * 16, 2 * 3 * 16 * 5
    assert step() == plain + forward - head - 2 * contract


@pytest.mark.parametrize("name", vix.SYSTEMS)
def test_at_most_a_quarter_is_kept(name: str) -> None:
    net = vix.SYSTEMS[name](image_size=32)
    batch = images(net, 1)
    plain = bytes_kept(lambda: net(batch), net.parameters())
    net.set_grad_checkpointing()
    assert bytes_kept(lambda: net(batch), net.parameters()) <= plain / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViN", "HybridFNet", "LeViN", "CvT", "CCP"])
def test_a_net_that_computes_blocks_again_compiles_to_one_graph(name: str) -> None:
    # In double precision: BatchNorm over two images multiplies a rounding of LeViN's kernel by thousands.
    net = tiny(vix.SYSTEMS[name]).double()
    compiled, batch = copy.deepcopy(net), images(net)
    torch.compiler.reset()
    compiled.set_grad_checkpointing()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for each in (net, compiled):
        each(batch).sin().sum().backward()
    for (name, expected), parameter in zip(net.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-6, atol=1e-8, msg=name)
    # A batch counts once.
    torch.testing.assert_close(dict(net.named_buffers()), dict(compiled.named_buffers()))

"""CvT: convolutional embedding and projections, strided keys, and where the class token joins."""

import pytest
import torch

from tests.backbones.test_pyramids import images, tiny
from vix import CvN, CvP, CvT, NystromAttention
from vix.backbones.cvt import TokenEmbedding
from vix.backbones.parts import BatchNorm


@pytest.mark.parametrize(("stride", "kernel", "padding"), [(4, 7, 2), (2, 3, 1), (1, 3, 1)])
def test_kernels_and_paddings_are_the_papers(stride: int, kernel: int, padding: int) -> None:
    project = TokenEmbedding(3, 8, stride).project
    assert (project.kernel_size, project.padding) == ((kernel, kernel), (padding, padding))


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("side", range(8, 20))
def test_an_embedding_knows_its_grid(stride: int, side: int) -> None:
    embedding = TokenEmbedding(3, 8, stride)
    _, tokens = embedding(images(1, 3, side, 24))
    assert tokens.grid == embedding.grid(side, 24)
    assert tokens.grid[1] == 24 // stride


def test_keys_are_a_quarter_of_the_queries_and_the_class_token_joins_last() -> None:
    specs = [block.attention.attention.spec for stage in CvT(image_size=(31, 32)).stages for block in stage.blocks]
    assert [(spec.queries.grid, spec.keys.grid) for spec in specs[::2]] == [
        ((31, 32), (16, 16)),
        ((16, 16), (8, 8)),
        ((8, 8), (4, 4)),
    ]
    assert [spec.queries.prefix for spec in specs] == [spec.keys.prefix for spec in specs] == [0, 0, 0, 1, 1, 1]


def test_the_mean_of_the_tokens_needs_no_class_token() -> None:
    net = tiny(CvT, pool="mean")
    assert net.stages[-1].class_token is None
    assert net.no_weight_decay() == set()
    assert net(images(2, 3, 16, 16)).shape == (2, 10)


def test_bare_nystrom_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="give residual_kernel=None"):
        CvT(attention=NystromAttention)


def test_cvn_has_the_residual_convolution_only_where_keys_are_not_strided() -> None:
    for kv_stride, residual in ((1, True), (2, False)):
        # On a grid of one token, where queries and keys are as many, nothing changes.
        net = CvN(image_size=8, kv_stride=kv_stride, stride=(8, 1, 1))
        kernels = [block.attention.attention for stage in net.stages for block in stage.blocks]
        assert {kernel.residual is not None for kernel in kernels} == {residual}


def test_the_published_nystrom_is_refused_where_keys_are_strided() -> None:
    with pytest.raises(ValueError, match="as_published=False"):
        CvN(as_published=True)
    CvN(as_published=True, kv_stride=1)


@pytest.mark.parametrize("system", [CvT, CvN, CvP])
@torch.no_grad()
def test_fusing_leaves_no_batch_norm_and_the_same_logits(system: type[CvT]) -> None:
    net = tiny(system, image_size=(24, 17)).eval()
    expected = net(images(2, 3, 24, 17))
    assert net.fuse() is net
    assert not any(isinstance(part, BatchNorm) for part in net.modules())
    torch.testing.assert_close(net(images(2, 3, 24, 17)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())

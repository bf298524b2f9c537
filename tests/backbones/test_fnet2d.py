"""FNet2D: a map mixed over channels, rows and columns."""

import math

import pytest
import torch
from torch import Tensor

import vix
from vix.backbones.fnet2d import FourierBlock


def net(**arguments: object) -> vix.FNet2D:
    torch.manual_seed(0)
    return vix.FNet2D(**{"num_classes": 5, "dim": 6, "depth": 2, "mlp_dim": 7} | arguments)  # type: ignore[arg-type]


def by_formula(x: Tensor) -> Tensor:
    """The real part of the three-dimensional DFT, written out as three matrices."""
    value = x.to(torch.complex128)
    for axis in (1, 2, 3):
        count = x.shape[axis]
        index = torch.arange(count, dtype=torch.float64)
        angle = index.outer(index) * (-2 * math.pi / count)
        matrix = torch.polar(torch.ones_like(angle), angle)
        value = torch.tensordot(value, matrix, dims=([axis], [0])).movedim(-1, axis)
    return value.real


def test_mixing_is_the_transform_over_channels_rows_and_columns() -> None:
    block, x = FourierBlock(6, 7, dropout=0.0).double().eval(), torch.randn(2, 6, 5, 3, dtype=torch.float64)
    # With running statistics of mean 0 and variance 1 the norm divides by sqrt(1 + eps) alone.
    expected = by_formula(x).movedim(1, -1) / math.sqrt(1 + block.norm.eps)
    torch.testing.assert_close(block.mix(x), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 9)])
def test_any_image_size_passes_in_forward(size: tuple[int, int]) -> None:
    assert net(image_size=32)(torch.randn(2, 3, *size)).shape == (2, 5)


def test_every_parameter_receives_a_finite_gradient() -> None:
    model = net(channels=4)
    model(torch.randn(3, 4, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_checkpointing_changes_no_gradient_and_counts_a_batch_once() -> None:
    images, grads, statistics = torch.randn(4, 3, 8, 8), [], []
    for enable in (False, True):
        model = net().train()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
        statistics.append(dict(model.named_buffers()))
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(statistics[1], statistics[0])
    assert statistics[1]["blocks.0.norm.num_batches_tracked"] == 1


def test_in_eval_mode_an_image_does_not_see_its_batch() -> None:
    model, images = net().eval(), torch.randn(3, 3, 8, 8)
    images[1:] *= 100
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_transform_in_range(dtype: torch.dtype) -> None:
    model, images = net(dim=32).train(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=dtype):
        logits = model(images)
    assert logits.isfinite().all()
    # Two blocks of products in eight or eleven bits.
    torch.testing.assert_close(logits.float(), model(images), rtol=0, atol=0.05 * model(images).abs().max().item())


def test_its_spec_builds_it_again() -> None:
    assert vix.build(net(image_size=(8, 6)).spec).image_size == (8, 6)


@pytest.mark.parametrize(("name", "value"), [("dim", 1), ("depth", 0), ("mlp_dim", 0)])
def test_an_impossible_size_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        net(**{name: value})

"""Fourier mixing is the formula of its paper, at any length, and leaves half precision where it must."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import reference
from vix.mixers import FourierMixing
from vix.mixers.fourier import RealTransform, coprime_factors, opaque_transform, transform_by_products
from vix.tokens import Tokens


@pytest.mark.parametrize(("count", "dim"), [(13, 6), (16, 8), (1, 5), (7, 1), (65, 48), (1025, 5), (629, 4)])
def test_it_is_the_real_part_of_the_transform_over_tokens_and_channels(count: int, dim: int) -> None:
    torch.manual_seed(0)
    tokens = Tokens((count, 1))
    x = torch.randn(2, count, dim, dtype=torch.float64, requires_grad=True)
    out, expected = FourierMixing(dim, tokens)(x, tokens), reference.fourier(x)
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, x, cotangent), torch.autograd.grad(expected, x, cotangent))


def test_lengths_that_transforms_are_slow_at_are_made_by_products_of_coprime_factors() -> None:
    assert coprime_factors(1025) == (25, 41)
    assert coprime_factors(629) == (17, 37)
    # small primes, a prime, a factor beyond the limit, too short
    assert [coprime_factors(n) for n in (1024, 1021, 4097, 82)] == [None] * 4


def test_it_has_no_parameters_and_takes_any_length() -> None:
    mixer = FourierMixing(4, Tokens((2, 2)))
    assert not mixer.state_dict()
    x = torch.randn(1, 15, 4, dtype=torch.float64)
    assert_close(mixer(x, Tokens((3, 5))), reference.fourier(x))


def test_float16_comes_back_as_float32_since_values_leave_its_range() -> None:
    x = torch.full((1, 1024, 128), 2.0, dtype=torch.float16)
    out = FourierMixing(128, Tokens((32, 32)))(x, Tokens((32, 32)))
    assert out.dtype == torch.float32
    # The constant's whole sum, which is four times float16's largest number.
    assert out[0, 0, 0] == 2 * 1024 * 128


def test_bfloat16_is_transformed_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 65, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = FourierMixing(32, Tokens((8, 8), 1))(x, Tokens((8, 8), 1))
    assert out.dtype == torch.bfloat16
    # One rounding, of the result.
    assert_close(out.double(), reference.fourier(x.double()), rtol=2**-8, atol=1e-3)


def test_backward_keeps_nothing_and_can_be_differentiated_again() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
    packed: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda nothing: nothing):
        FourierMixing(6, Tokens((5, 1)))(x, Tokens((5, 1)))
    assert not packed
    assert torch.autograd.gradcheck(RealTransform.apply, (x,))
    assert torch.autograd.gradgradcheck(RealTransform.apply, (x,))


@pytest.mark.parametrize("shape", [(3, 13, 6), (2, 1, 5), (2, 7, 1), (1, 65, 48), (2, 5, 4, 3)], ids=str)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-14), (torch.float32, 2e-6)], ids=str)
def test_products_with_waves_are_the_transform(shape: tuple[int, ...], dtype: torch.dtype, allowed: float) -> None:
    torch.manual_seed(0)
    x, dims = torch.randn(shape, dtype=torch.float64), tuple(range(1, len(shape)))
    expected = torch.fft.fftn(x, dim=dims).real
    error = (transform_by_products(x.to(dtype), dims) - expected).abs().max() / expected.abs().max()
    # Half a dozen roundings of the largest value.
    assert error < allowed


class Alone(torch.nn.Module):
    """A mixer for fifteen tokens of width four, as an exporter takes it: tensors in, tensors out."""

    tokens = Tokens((3, 5))

    def __init__(self) -> None:
        super().__init__()
        self.mixer = FourierMixing(4, self.tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x, self.tokens)


@pytest.mark.slow
def test_an_exported_mixer_has_products_and_no_transform() -> None:
    mixer, batch = Alone(), torch.export.Dim("batch")
    exported = torch.export.export(mixer, (torch.randn(2, 15, 4),), dynamic_shapes=({0: batch},))
    assert "fft" not in str(exported.graph)
    for count in (1, 2, 7):
        x = torch.randn(count, 15, 4)
        assert_close(exported.module()(x), mixer(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_transform_that_compilers_do_not_look_into_is_a_sound_operator() -> None:
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(opaque_transform, (x,))
    assert_close(opaque_transform(x), torch.fft.fft2(x).real)
    torch.autograd.gradcheck(opaque_transform, (x,))


def test_a_compiled_mixer_has_no_complex_numbers() -> None:
    seen: list[torch.dtype] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.extend(node.meta["example_value"].dtype for node in graph.graph.nodes if "example_value" in node.meta)
        return graph.forward

    mixer = FourierMixing(6, Tokens((3, 3)))
    torch.compile(mixer, backend=look, fullgraph=True)(torch.randn(2, 9, 6), Tokens((3, 3)))
    assert seen
    assert not any(dtype.is_complex for dtype in seen)

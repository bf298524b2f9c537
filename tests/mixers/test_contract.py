"""What every mixer promises: (b n c) to (b n c), each image by itself."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from vix import KERNELS, Linformer
from vix.mixers import FourierMixing, Mixer, MixerFactory, MLPMixing, SelfAttention
from vix.tokens import Tokens

DIM, TOKENS = 12, Tokens((3, 4), prefix=1)
MIXERS: dict[str, MixerFactory] = {
    **{kernel.__name__: partial(SelfAttention, heads=2, dim_head=8, attention=kernel) for kernel in KERNELS},
    "rope": partial(SelfAttention, heads=2, dim_head=8, rotary="rope"),
    "rope_axial": partial(SelfAttention, heads=2, dim_head=8, rotary="rope_axial"),
    "Fourier": FourierMixing,
    "MLP": partial(MLPMixing, hidden=7),
    "biases": partial(SelfAttention, heads=2, dim_head=8, qkv_bias=True),
    "one head of keys": partial(SelfAttention, heads=2, dim_head=8, one_kv_head=True),
    "keys for values": partial(SelfAttention, heads=2, dim_head=8, share_kv=True),
    "one head of Linformer's": partial(
        SelfAttention, heads=2, dim_head=8, attention=partial(Linformer, rank=3), one_kv_head=True, share_kv=True
    ),
}

with_every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def made(mixer: MixerFactory, dtype: torch.dtype = torch.float64) -> Mixer:
    torch.manual_seed(0)
    return mixer(DIM, TOKENS).to(dtype)


@with_every_mixer
def test_shape_stays_and_every_parameter_gets_a_finite_gradient(mixer: MixerFactory) -> None:
    module, x = made(mixer), torch.randn(2, TOKENS.count, DIM, dtype=torch.float64, requires_grad=True)
    out = module(x, TOKENS)
    assert out.shape == x.shape
    out.square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@with_every_mixer
def test_gradients_are_those_of_finite_differences(mixer: MixerFactory) -> None:
    module, x = made(mixer), torch.randn(1, TOKENS.count, DIM, dtype=torch.float64, requires_grad=True)
    learned = tuple(module.parameters())
    # One random direction instead of every coordinate: these have hundreds.
    assert torch.autograd.gradcheck(lambda x, *_: module(x, TOKENS), (x, *learned), fast_mode=True, atol=1e-5)


@with_every_mixer
@pytest.mark.parametrize("count", [1, 3])
def test_the_first_tokens_are_those_of_all(mixer: MixerFactory, count: int) -> None:
    module, x = made(mixer), torch.randn(2, TOKENS.count, DIM, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, count, DIM, dtype=torch.float64)
    expected = module(x, TOKENS)[:, :count]
    out = module.first(x, TOKENS, count)
    assert_close(out, expected)
    learned = (x, *module.parameters())
    assert_close(*(torch.autograd.grad((each * weights).sum(), learned) for each in (out, expected)))


@with_every_mixer
def test_output_does_not_depend_on_batch_mates(mixer: MixerFactory) -> None:
    module, x = made(mixer), torch.randn(3, TOKENS.count, DIM, dtype=torch.float64)
    x[1:] *= 100
    assert_close(module(x, TOKENS)[:1], module(x[:1], TOKENS))


@with_every_mixer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e3])
def test_half_precision_stays_finite_under_autocast(mixer: MixerFactory, dtype: torch.dtype, scale: float) -> None:
    module, x = made(mixer, torch.float32), (scale * torch.randn(2, TOKENS.count, DIM)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        out = module(x, TOKENS)
    assert out.isfinite().all()
    out.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.mT.contiguous().mT


@with_every_mixer
@pytest.mark.parametrize("layout", [transposed, torch.Tensor.contiguous], ids=["transposed", "contiguous"])
def test_memory_layout_does_not_matter(mixer: MixerFactory, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module, x = made(mixer), torch.randn(2, TOKENS.count, DIM, dtype=torch.float64)
    assert_close(module(layout(x), TOKENS), module(x, TOKENS))

"""The published logits: same weights, same images, same numbers as the original code, in float64."""

import functools

import pytest
import torch
from torch import Tensor

from tests.published.goldens import GOLDENS, golden
from vix import published
from vix.backbones import Backbone
from vix.measure import parameters
from vix.published import ORIGINALS

# ViTRoPE, ViLRoPE and their hybrids saved a table of positions that nothing ever read.
UNUSED_TABLE = ("ViTRoPE", "ViLRoPE", "HybridViTRoPE", "HybridViLRoPE")


@functools.cache
def loaded(system: str) -> Backbone:
    return published.load(system, golden(system).arguments, golden(system).state)


def assert_published(system: str, logits: Tensor, expected: Tensor) -> None:
    # The original's table of rotations holds float32 products of position and frequency: that is RoPE's floor.
    share = 1e-4 if system.endswith("RoPE") else 1e-6
    torch.testing.assert_close(logits, expected, rtol=0, atol=share * expected.abs().max().item())


@pytest.mark.parametrize("system", GOLDENS)
@torch.no_grad()
def test_the_same_weights_give_the_published_logits(system: str) -> None:
    assert_published(system, loaded(system)(golden(system).images), golden(system).logits)


@pytest.mark.parametrize("system", GOLDENS)
@torch.no_grad()
def test_an_image_alone_gives_the_published_logits(system: str) -> None:
    assert_published(system, loaded(system)(golden(system).images[:1]), golden(system).first_image_alone)


@pytest.mark.parametrize("system", GOLDENS)
def test_the_number_of_parameters_is_the_published_one(system: str) -> None:
    unused = golden(system).state["pos_embedding"].numel() if system in UNUSED_TABLE else 0
    assert parameters(loaded(system)) == golden(system).parameters - unused


@pytest.mark.parametrize("system", GOLDENS)
def test_a_loaded_net_is_in_eval_mode_and_double_precision(system: str) -> None:
    net = loaded(system)
    assert not any(module.training for module in net.modules())
    assert {value.dtype for value in net.parameters()} == {torch.float64}


def test_every_published_system_has_its_golden() -> None:
    # The package's FNet2D is the scripts' own, under other names of arguments.
    assert set(ORIGINALS) - {"pip_FNet2D"} <= set(GOLDENS)

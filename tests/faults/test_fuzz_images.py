"""Image tensors and sizes for every system: logits, or an error of at most five lines that says what would do.

VIX_FUZZ=full python -m pytest tests/faults/test_fuzz_images.py             # 100 sizes and 100 tensors a system
"""

from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import vix
from tests.faults import fuzz
from tests.nets import SIZES, tiny
from vix.spec import parameters_of

EXAMPLES = 100 if fuzz.FULL else 3
# What a net may raise for what it cannot take; anything else would be an accident.
CLEAN = (ValueError, TypeError)

SIDES = st.one_of(st.integers(1, 24), st.sampled_from([0, -1, 1, 2, 3, 31]))
SIZE = st.one_of(SIDES, st.tuples(SIDES, SIDES), st.sampled_from([None, 8.0, "8", True, (8,), (8, 8, 8), [9, 12]]))
COUNT = st.sampled_from([1, 2, 3, 3, 3, 4, 0, -1, 2.5, None, "3"])
PATCH = st.sampled_from([None, None, 1, 2, 4, 5, (2, 4), 0, -1, 64, 1.5])
DTYPES = [torch.float32] * 4 + [torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool]


def told(error: Exception) -> str:
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) <= fuzz.LINES, message
    return message


@pytest.mark.parametrize("name", vix.SYSTEMS)
def test_any_sizes_make_a_net_or_are_refused(name: str) -> None:
    system = vix.SYSTEMS[name]
    allowed = parameters_of(system)

    def law(image_size: Any, channels: Any, num_classes: Any, patch_size: Any, batch: int) -> None:
        options = {"image_size": image_size, "channels": channels, "num_classes": num_classes, "patch_size": patch_size}
        given = {key: value for key, value in options.items() if key in allowed}
        try:
            net = tiny(system, **given)
        except CLEAN as error:
            message = told(error)
            # it names the argument at fault, or the size that follows from it
            assert any(word in message for word in (*given, "image", "tokens", "pixels", "patch", "grid")), message
            return
        logits = net.eval()(torch.zeros(batch, net.channels, *net.image_size))
        # without classes there is no classifier
        assert logits.shape == (batch, num_classes or net.num_features)
        assert logits.isfinite().all()

    with fuzz.limits():
        fuzz.hold(
            law,
            EXAMPLES,
            list(vix.SYSTEMS).index(name),
            image_size=SIZE,
            channels=COUNT,
            num_classes=COUNT,
            patch_size=PATCH,
            batch=st.integers(1, 3),
        )


def drawn(data: st.DataObject, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Images right or wrong in shape, type, values or layout."""
    shape = [data.draw(st.integers(0, 3)), channels, *size]
    fault = data.draw(st.sampled_from(["none", "none", "rank", "side", "channels"]))
    if fault == "rank":
        shape = shape[data.draw(st.integers(1, 3)) :] if data.draw(st.booleans()) else [1, *shape]
    elif fault == "side":
        shape[data.draw(st.integers(2, 3))] = data.draw(st.integers(0, 40))
    elif fault == "channels":
        shape[1] = data.draw(st.integers(0, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    scale = data.draw(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e30, float("inf"), float("nan")]))
    values = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(
        data.draw(st.sampled_from(DTYPES))
    )
    layout = data.draw(st.sampled_from(["plain", "channels last", "strided", "expanded"]))
    if layout == "channels last" and values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "strided" and values.ndim:
        return values.mT.contiguous().mT if values.ndim > 1 else values
    if layout == "expanded" and values.numel():
        return values[:1].expand(values.shape)
    return values


@pytest.mark.parametrize("name", vix.SYSTEMS)
def test_any_tensor_gives_logits_or_is_refused(name: str) -> None:
    net = tiny(vix.SYSTEMS[name], image_size=(12, 16)).eval()

    @torch.no_grad()
    def law(data: st.DataObject) -> None:
        images = drawn(data, net.channels, net.image_size)
        try:
            logits = net(images)
        except CLEAN as error:
            message = told(error)
            assert any(word in message for word in ("image", "built for", "dtype", "float", "tokens")), message
            return
        assert logits.shape == (len(images), net.num_classes)
        if images.isfinite().all() and images.numel() and images.abs().max() <= 1e4:
            assert logits.isfinite().all()

    with fuzz.limits():
        fuzz.hold(law, EXAMPLES, list(vix.SYSTEMS).index(name), data=st.data())


@pytest.mark.parametrize("depth", [1001, 2**31, 10**30])
@pytest.mark.parametrize("name", vix.SYSTEMS)
def test_a_depth_that_no_machine_ends_building_is_refused(name: str, depth: int) -> None:
    with fuzz.limits(), pytest.raises(ValueError, match="depth must be at most 1000, got"):
        vix.SYSTEMS[name](depth=depth)


def test_every_body_is_fuzzed_at_a_small_size() -> None:
    bodies = {kind.__name__ for system in vix.SYSTEMS.values() for kind in system.__mro__}
    assert set(SIZES) <= bodies

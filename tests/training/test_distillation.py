"""A teacher's layers and logits are learned, and the teacher stays out of it."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import vix
from tests.nets import SIZES, tiny
from tests.training.standin import Batch, fit, net
from vix.swap import swap_attention
from vix.training.distillation import DistilledClassifier, divergence, relative_error


def swapped(layers: list[int] | None = None, **options: Any) -> DistilledClassifier:
    teacher = tiny(vix.ViT)
    made = partial(vix.ViT, **SIZES["VisionTransformer"])
    student = vix.Swapped(net=made, attention=vix.Performer, layers=layers, image_size=16, num_classes=5)
    student.net.load_state_dict(teacher.state_dict(), strict=False)
    return DistilledClassifier(student, teacher=teacher, **options)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 3]), torch.arange(4))


def test_what_was_swapped_is_what_is_compared() -> None:
    assert list(swapped().pairs) == ["blocks.0.mixer", "blocks.1.mixer"]
    assert list(swapped(layers=[1]).pairs) == ["blocks.1.mixer"]


def test_a_net_like_its_teacher_pays_the_cross_entropy_alone() -> None:
    teacher = tiny(vix.ViT)
    module = DistilledClassifier(copy.deepcopy(teacher), teacher=teacher)
    logits = module(batch().images)
    plain = torch.nn.functional.cross_entropy(logits, batch().labels)
    torch.testing.assert_close(module.training_loss(batch(), logits), plain)


def test_each_weight_weighs_its_own_distance() -> None:
    found = {}
    for attention, logits in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        module = swapped(attention=attention, logits=logits)
        torch.manual_seed(0)
        found[attention, logits] = module.training_loss(batch(), module(batch().images)).item()
    plain = found[0.0, 0.0]
    layers, ends = found[1.0, 0.0] - plain, found[0.0, 1.0] - plain
    assert layers > 0
    assert ends > 0
    assert found[2.0, 3.0] == pytest.approx(plain + 2 * layers + 3 * ends, rel=1e-4)


def test_the_distances_are_zero_for_the_same_and_count_in_parts_of_the_variance() -> None:
    x = torch.randn(6, 5)
    assert divergence(x, x, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert relative_error(x, x).item() == 0
    # The mean instead of the values: all of their variance is lost, but for its n - 1.
    assert relative_error(x.mean().expand_as(x), x).item() == pytest.approx(29 / 30, rel=1e-4)


def test_the_teacher_is_neither_trained_nor_kept(tmp_path: Path) -> None:
    teacher = vix.ViT(image_size=4, num_classes=3, channels=1, dim=8, depth=1, heads=2, dim_head=4, patch_size=2)
    before = copy.deepcopy(teacher.state_dict())
    student = swap_attention(copy.deepcopy(teacher), vix.Performer)
    module = DistilledClassifier(student, teacher=teacher)
    assert not [name for name in module.state_dict() if not name.startswith("net.")]
    fit(module, tmp_path, max_epochs=1)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    trained = student.state_dict()
    assert any(not torch.equal(trained[name], before[name]) for name in before)


def test_learning_from_the_layers_brings_them_nearer() -> None:
    module = swapped(attention=1.0, logits=0.0)
    optimiser = torch.optim.Adam(module.net.parameters(), lr=1e-3)
    distances = []
    for _ in range(30):
        loss = module.training_loss(batch(), module(batch().images).detach())
        distances.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    plain = torch.nn.functional.cross_entropy(module(batch().images), batch().labels)
    assert plain.isfinite()
    assert distances[-1] < distances[0]


@pytest.mark.parametrize("options", [{"attention": -1.0}, {"logits": -0.5}, {"temperature": 0.0}])
def test_weights_below_zero_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="distillation needs attention and logits of at least 0"):
        DistilledClassifier(net(), teacher=net(), **options)

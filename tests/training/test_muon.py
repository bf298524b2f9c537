"""Muon and AdamW as one optimiser: against the formulas in float64, and which parameter gets which."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import vix
from vix.training import ImageClassifier, MuonAdamW, parameter_groups
from vix.training.muon import orthogonalize
from vix.training.optim import keep_settings

# (3.4445, -4.7750, 2.0315) are the published coefficients of the odd polynomial in each singular value.
A, B, C = 3.4445, -4.775, 2.0315


def polynomial_of_singular_values(matrix: Tensor) -> Tensor:
    """What five steps make of a matrix, by its singular value decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = A * values + B * values**3 + C * values**5
    return left @ torch.diag(values) @ right


def steps_of_muon(
    weight: Tensor, gradients: list[Tensor], *, lr: float, decay: float, rms: float, momentum: float
) -> Tensor:
    """The weight after a step for each gradient, from the formulas and in float64."""
    weight, mean = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients:
        mean = momentum * mean + (1 - momentum) * gradient.double()
        ahead = momentum * mean + (1 - momentum) * gradient.double()
        length = rms * max(weight.shape) ** 0.5
        weight = weight - lr * decay * weight - lr * length * polynomial_of_singular_values(ahead)
    return weight


@pytest.mark.parametrize("shape", [(2, 2), (7, 3), (3, 7), (1, 5), (64, 64), (130, 33)])
def test_each_singular_value_goes_through_the_polynomial_and_directions_stay(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    expected = torch.stack([polynomial_of_singular_values(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(orthogonalize(matrices.float()), expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 64), (200, 50), (20, 30)])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_gradient_of_few_images_has_few_directions_and_keeps_them(shape: tuple[int, int], rank: int) -> None:
    torch.manual_seed(0)
    few = torch.randn(shape[0], rank, dtype=torch.float64) @ torch.randn(rank, shape[1], dtype=torch.float64)
    expected = polynomial_of_singular_values(few)
    torch.testing.assert_close(orthogonalize(few.float()), expected.float(), rtol=1e-3, atol=1e-3)


def test_singular_values_come_near_one_whatever_the_size_of_the_matrix() -> None:
    for scale in (1e-12, 1.0, 1e12):
        values = torch.linalg.svdvals(orthogonalize(scale * torch.randn(16, 48)))
        assert values.min() > 0.65
        assert values.max() < 1.25


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not orthogonalize(torch.zeros(4, 6)).any()


def test_low_precision_is_left_for_the_iteration() -> None:
    matrix = torch.randn(24, 40).bfloat16()
    result = orthogonalize(matrix)
    assert result.dtype == torch.bfloat16
    # rounding of the result alone: the products themselves were not in bfloat16
    torch.testing.assert_close(result, orthogonalize(matrix.float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"lr": 0.3, "weight_decay": 0.1, "rms": 0.7, "momentum": 0.5}])
def test_matrices_step_as_the_formulas_say(settings: dict[str, Any]) -> None:
    layers = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 10))
    before = deepcopy(layers)
    optimizer = MuonAdamW(layers.named_parameters(), **settings)
    gradients = {name: [torch.randn_like(parameter) for _ in range(3)] for name, parameter in layers.named_parameters()}
    for step in range(3):
        for name, parameter in layers.named_parameters():
            parameter.grad = gradients[name][step].clone()
        optimizer.step()
    used = {"lr": 1e-3, "weight_decay": 0.05, "rms": 0.2, "momentum": 0.95, **settings}
    used["decay"] = used.pop("weight_decay")
    for name in ("0.weight", "1.weight", "2.weight"):
        expected = steps_of_muon(before.get_parameter(name), gradients[name], **used)
        torch.testing.assert_close(layers.get_parameter(name).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_step_of_a_matrix_has_the_asked_root_mean_square() -> None:
    layer = nn.Linear(200, 100, bias=False)
    before = layer.weight.detach().clone()
    optimizer = MuonAdamW(layer.named_parameters(), lr=0.01, rms=0.2, weight_decay=0.0)
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer.step()
    length = (layer.weight.detach() - before).square().mean().sqrt()
    # singular values are between 0.7 and 1.2, not one
    assert 0.7 * 0.002 < float(length) < 1.2 * 0.002


def small() -> nn.Module:
    return vix.ViL(image_size=8, num_classes=3, dim=16, depth=2, heads=2, dim_head=8, mlp_dim=16, rank=4)


def test_all_but_hidden_matrices_step_as_adamw_does() -> None:
    torch.manual_seed(0)
    net = small()
    twin = deepcopy(net)
    images = torch.randn(4, 3, 8, 8)
    ours = MuonAdamW(parameter_groups(net), lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    theirs = AdamW(parameter_groups(twin), lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    matrices = {name for group in ours.param_groups if group["muon"] for name in group["param_names"]}
    assert matrices
    for _ in range(3):
        net(images).square().mean().backward()
        for one, other in zip(net.parameters(), twin.parameters(), strict=True):
            other.grad = None if one.grad is None else one.grad.clone()
        ours.step()
        theirs.step()
        ours.zero_grad()
    for name, parameter in net.named_parameters():
        if name in matrices:
            assert not torch.equal(parameter, twin.get_parameter(name))
        else:
            torch.testing.assert_close(parameter, twin.get_parameter(name), rtol=0, atol=0)


def test_muon_takes_the_matrices_between_embedding_and_head_and_nothing_else() -> None:
    groups = MuonAdamW(parameter_groups(small())).param_groups
    names = {name: group["muon"] for group in groups for name in group["param_names"]}
    assert {name for name, muon in names.items() if muon} == {
        f"blocks.{block}.{weight}"
        for block in (0, 1)
        for weight in (
            "mixer.project.weight",
            "mixer.attention.project_keys",
            "mixer.output.weight",
            "mlp.expand.weight",
            "mlp.contract.weight",
        )
    }
    # the rate that is logged, and that the finder changes, is that of the first group; all have the same
    assert [group["lr"] for group in groups] == [1e-3] * len(groups)


def test_a_position_table_of_two_dimensions_is_no_matrix_to_muon() -> None:
    net = nn.Module()
    net.table, net.linear = nn.Parameter(torch.randn(4, 6)), nn.Linear(6, 6)
    net.no_weight_decay = lambda: {"table"}  # type: ignore[assignment]
    names = {
        name: group["muon"] for group in MuonAdamW(parameter_groups(net)).param_groups for name in group["param_names"]
    }
    assert names == {"linear.weight": True, "linear.bias": False, "table": False}


@pytest.mark.parametrize("words", [["linear"], ["lin", "other"], ["weight"]])
def test_words_choose_what_adamw_moves(words: list[str]) -> None:
    net = nn.Sequential()
    net.add_module("linear", nn.Linear(3, 3))
    (group,) = MuonAdamW(net.named_parameters(), elementwise=words).param_groups
    assert not group["muon"]
    assert any(group["muon"] for group in MuonAdamW(net.named_parameters(), elementwise=["near"]).param_groups)


def test_parameters_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="chooses by names: give it net"):
        MuonAdamW(nn.Linear(2, 2).parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"rms": -0.1}, "rms must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"eps": -1e-8}, "eps must not be negative"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"betas": (0.9, 1.0)}, "betas\\[1\\] must be at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MuonAdamW(nn.Linear(2, 2).named_parameters(), **settings)


def test_what_has_no_gradient_stays_and_the_closure_is_asked() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = deepcopy(net.state_dict())
    optimizer = MuonAdamW(net.named_parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net[0](torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert float(loss.detach()) == pytest.approx(float(before["0.weight"].sum() + before["0.bias"].sum()), rel=1e-4)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.weight", "0.bias"}


def steps(net: nn.Module, optimizer: Any, images: Iterator[Tensor], count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        net(next(images)).square().mean().backward()
        optimizer.step()


def test_a_state_that_is_saved_and_loaded_goes_on_bit_for_bit_with_the_settings_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = [torch.randn(2, 3, 8, 8) for _ in range(6)]
    net = small()
    optimizer = MuonAdamW(parameter_groups(net), lr=1e-2)
    steps(net, optimizer, iter(images[:3]), 3)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    steps(net, optimizer, iter(images[3:]), 3)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = small()
    other.load_state_dict(saved["net"])
    again = MuonAdamW(parameter_groups(other), lr=1e-2)
    keep_settings(again)
    again.load_state_dict(saved["optimizer"])
    assert again.state
    steps(other, again, iter(images[3:]), 3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_copy_of_the_optimiser_steps_on_its_own() -> None:
    net = nn.Linear(4, 4)
    optimizer = MuonAdamW(net.named_parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    before = net.weight.detach().clone()
    copy = deepcopy(optimizer)
    weight = copy.param_groups[-1]["params"][0]
    weight.grad = torch.randn(4, 4)
    copy.step()
    assert copy.param_groups[-1]["muon"]
    assert not torch.equal(weight, before)
    torch.testing.assert_close(net.weight.detach(), before, rtol=0, atol=0)


def test_the_classifier_says_how_its_optimiser_is_made_again() -> None:
    module = ImageClassifier(small(), optimizer=partial(MuonAdamW, lr=2e-3, elementwise=("head",)))
    assert module.hparams["optimizer"] == {
        "class_path": "vix.training.MuonAdamW",
        "init_args": {"lr": 2e-3, "elementwise": ["head"]},
    }
    assert isinstance(module.configure_optimizers(), MuonAdamW)

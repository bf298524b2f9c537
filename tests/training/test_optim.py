"""Parameter groups, and the rate at every step of a real training."""

import math
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

import vix
from vix.training.console import quiet
from vix.training.optim import ScheduledRate, WarmupCosine, keep_settings, parameter_groups


def test_vectors_and_what_the_net_spares_do_not_decay_and_everything_else_does() -> None:
    net = vix.ViP(image_size=8, num_classes=3, dim=16, depth=1, heads=2, dim_head=8, mlp_dim=16)
    decayed, kept = parameter_groups(net)
    spared = net.no_weight_decay()
    assert spared
    names = {parameter: name for name, parameter in net.named_parameters()}
    assert kept["weight_decay"] == 0.0
    assert "weight_decay" not in decayed
    assert {names[each] for each in kept["params"]} == spared | {n for n, p in net.named_parameters() if p.ndim <= 1}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_frozen_parameters_are_left_out() -> None:
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    (group,) = parameter_groups(net)
    assert group["params"] == [net.weight]


def test_a_net_that_spares_what_it_does_not_have_is_refused() -> None:
    net = nn.Linear(2, 2)
    net.no_weight_decay = lambda: {"table"}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="names what is no parameter: \\['table'\\]"):
        parameter_groups(net)


def test_a_net_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="Identity has no parameter to train"):
        parameter_groups(nn.Identity())


def test_the_curve_rises_to_one_and_falls_along_a_cosine_to_its_end() -> None:
    curve = [WarmupCosine(warmup=0.1, final=0.01).factor(step, 100) for step in range(101)]
    assert curve[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    expected = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 90)) for step in range(91)]
    assert curve[10:] == pytest.approx(expected)
    assert WarmupCosine(final=0.01).factor(1000, 100) == pytest.approx(0.01)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_no_step_of_a_short_training_is_wasted(steps: int, warmup: float) -> None:
    assert all(0 < WarmupCosine(warmup=warmup).factor(step, steps) <= 1 for step in range(steps))


@pytest.mark.parametrize("arguments", [{"warmup": -0.1}, {"warmup": 2}, {"final": 1.5}])
def test_shares_outside_zero_to_one_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a share from 0 to 1, got"):
        WarmupCosine(**arguments)


class Watched(LightningModule):
    """Notes the rate with which each optimiser step is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        return self.layer(batch[0]).square().mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=2.0)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = ScheduledRate(optimizer, WarmupCosine(warmup=0.25), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_every_optimiser_step_has_its_own_place_on_the_curve_with_accumulation_too(
    accumulate: int, tmp_path: Any
) -> None:
    module = Watched()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=4,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with quiet():
        trainer.fit(module, DataLoader(TensorDataset(torch.ones(6, 1))))
    steps = 4 * math.ceil(6 / accumulate)
    assert module.rates == pytest.approx([2 * WarmupCosine(warmup=0.25).factor(step, steps) for step in range(steps)])


def test_a_restored_optimiser_keeps_the_settings_asked_for_and_takes_the_state() -> None:
    layer = nn.Linear(2, 2)
    old = AdamW(layer.parameters(), lr=1e-3, weight_decay=0.05)
    layer(torch.ones(1, 2)).sum().backward()
    old.step()
    new = AdamW(layer.parameters(), lr=0.5, weight_decay=0.1)
    keep_settings(new)
    new.load_state_dict(old.state_dict())
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (0.5, 0.1)
    torch.testing.assert_close(new.state[layer.weight]["exp_avg"], old.state[layer.weight]["exp_avg"])


def test_a_restored_schedule_goes_to_its_place_with_the_rate_asked_for() -> None:
    def scheduled(rate: float) -> ScheduledRate:
        return ScheduledRate(SGD([nn.Parameter(torch.ones(1))], lr=rate), WarmupCosine(warmup=0.0), 10)

    old, new = scheduled(1.0), scheduled(0.1)
    for _ in range(4):
        old.optimizer.step()
        old.step()
    new.load_state_dict(old.state_dict())
    assert new.optimizer.param_groups[0]["lr"] == pytest.approx(old.optimizer.param_groups[0]["lr"] / 10)
    assert new.get_last_lr() == [new.optimizer.param_groups[0]["lr"]]

"""Parts of the recipe inside a real training: the rate of every step, accumulation, clipping, redrawn features."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import SGD, AdamW, Optimizer

from datamodules import Digits
from tests.training.standin import Noise, net
from vix.training import ImageClassifier, WarmupCosine
from vix.training.callbacks import AveragedWeights, BestAndLast, RandomState
from vix.training.console import quiet
from vix.training.runs import Run


class Steps(Callback):
    """Notes of each optimiser step the rates of all groups, and the norm of the gradient that it is taken with."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.norms: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after a step the gradient is still there, clipped, and the schedule has not gone on yet
        trainer.optimizers[0].register_step_post_hook(self._note)

    def _note(self, optimizer: Optimizer, *rest: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"]]
        self.norms.append(torch.cat([each.flatten() for each in gradients]).norm().item())


def train(folder: Path, *callbacks: Callback, epochs: int = 2, batch_size: int = 8, **options: Any) -> ImageClassifier:
    """A tiny ViP after some epochs on the forty images of `Noise`."""
    torch.manual_seed(0)
    clip, accumulate = options.pop("clip", None), options.pop("accumulate", 1)
    module = ImageClassifier(net(), **{"optimizer": partial(SGD, lr=0.5), **options})
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            gradient_clip_val=clip,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
        )
        trainer.fit(module, datamodule=Noise(batch_size=batch_size))
    return module


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_classifier_takes_every_step_at_its_place_on_the_curve(accumulate: int, tmp_path: Path) -> None:
    steps = Steps()
    curve, optimizer = WarmupCosine(warmup=0.3), partial(AdamW, lr=0.02)
    train(tmp_path, steps, epochs=3, accumulate=accumulate, schedule=curve, optimizer=optimizer)
    # five batches an epoch; the last step of an epoch takes what is left
    count = 3 * math.ceil(5 / accumulate)
    expected = [0.02 * curve.factor(step, count) for step in range(count)]
    for group in zip(*steps.rates, strict=True):
        assert group == pytest.approx(expected)
    assert len(steps.rates[0]) == 2


def test_without_a_schedule_the_rate_is_held(tmp_path: Path) -> None:
    steps = Steps()
    train(tmp_path, steps)
    assert {rate for rates in steps.rates for rate in rates} == {0.5}


def test_accumulating_five_batches_is_a_batch_five_times_as_large(tmp_path: Path) -> None:
    large, small = train(tmp_path, batch_size=40), train(tmp_path, batch_size=8, accumulate=5)
    torch.testing.assert_close(small.state_dict(), large.state_dict(), rtol=1e-4, atol=1e-6)
    other = train(tmp_path, batch_size=8)
    assert not torch.allclose(other.state_dict()["net.head.weight"], large.state_dict()["net.head.weight"], atol=1e-3)


def test_a_gradient_longer_than_asked_for_is_shortened_and_no_other(tmp_path: Path) -> None:
    free, short = Steps(), Steps()
    train(tmp_path, free)
    # between two norms: one that is the limit is shortened by a millionth
    middle = len(free.norms) // 2
    limit = sum(sorted(free.norms)[middle - 1 : middle + 1]) / 2
    train(tmp_path, short, clip=limit)
    assert max(short.norms) == pytest.approx(limit, rel=1e-4)
    # until the first that is shortened both trainings are the same
    same = next(place for place, norm in enumerate(free.norms) if norm > limit)
    assert short.norms[:same] == pytest.approx(free.norms[:same])
    assert short.norms[same] == pytest.approx(limit, rel=1e-4)


def test_features_that_are_redrawn_come_out_of_a_checkpoint_as_if_training_had_not_stopped(tmp_path: Path) -> None:
    def run(folder: str, epochs: int, resume: Path | None = None) -> Path:
        torch.manual_seed(0)
        place, data = Run(tmp_path / folder / "digits" / "1"), Digits(fraction=0.1, batch_size=32)
        module = ImageClassifier(net(redraw=3, image_size=8, num_classes=10), optimizer=partial(SGD, lr=0.1))
        with quiet():
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
                use_distributed_sampler=False,
                callbacks=[BestAndLast(place), AveragedWeights(0.9), RandomState()],
            )
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        return place.last

    # five steps an epoch: the checkpoint after ten lies between the third redrawing and the fourth
    whole, parts = run("whole", 4), run("parts", 4, run("half", 2))
    states = [torch.load(path, weights_only=True) for path in (whole, parts)]
    for key in ("state_dict", "current_model_state"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)
    (steps,) = (value for name, value in states[1]["state_dict"].items() if name.endswith("steps"))
    assert steps == 20

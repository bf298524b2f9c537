"""The moving average of the weights: what it is, when it is used, and what a checkpoint keeps of it."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD

from tests.training.standin import Foreign, Noise, fit, net
from vix.attention.performer import orthogonal_features
from vix.training import ImageClassifier
from vix.training.callbacks import AveragedWeights, BestAndLast
from vix.training.console import quiet


class Normed(nn.Module):
    """A net with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.rest = Foreign()

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(self.norm(images))


class History(Callback):
    """Copies of the whole state: before the first step, after each, and in each validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    @staticmethod
    def copy(module: LightningModule) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(self.copy(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if trainer.global_step > len(self.steps) - 1:
            self.steps.append(self.copy(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.validated.append(self.copy(pl_module))


class Redraw(Callback):
    """Draws Performer's directions anew before each step, which a mean over steps would spoil."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for name, buffer in pl_module.named_buffers():
            if name.endswith("projection"):
                buffer.copy_(orthogonal_features(*buffer.shape, opposite=True))


def classifier(net: nn.Module) -> ImageClassifier:
    return ImageClassifier(net, optimizer=partial(SGD, lr=0.1))


def expected(steps: list[dict[str, Tensor]], decay: float, names: list[str]) -> dict[str, Tensor]:
    """The formula, one step after another."""
    average = {name: steps[0][name] for name in names}
    for n, weights in enumerate(steps[1:]):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * average[name] + (1 - d) * weights[name] for name in names}
    return average


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("make", [net, Normed], ids=["ViP", "batch norm"])
def test_the_average_is_the_formulas_and_is_what_is_validated_and_kept(
    make: Any, accumulate: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, history = classifier(make()), History()
    trainer, run = fit(
        module,
        tmp_path,
        max_epochs=3,
        accumulate_grad_batches=accumulate,
        callbacks=[history, Redraw(), AveragedWeights(0.6)],
    )
    last = torch.load(run.last, weights_only=True)
    assert len(history.steps) == trainer.global_step + 1
    averaged = [name for name in last["state_dict"] if not name.endswith(("projection", "num_batches_tracked"))]
    formula = expected(history.steps, 0.6, averaged)
    validated = history.validated[-1]
    for found in (last["state_dict"], validated, module.state_dict()):
        torch.testing.assert_close({name: found[name] for name in averaged}, formula)
        # all other state is the net's own of the last step
        torch.testing.assert_close(
            {name: found[name] for name in found if name not in averaged},
            {name: history.steps[-1][name] for name in found if name not in averaged},
            rtol=0,
            atol=0,
        )
    torch.testing.assert_close(last["current_model_state"], history.steps[-1], rtol=0, atol=0)
    assert not torch.equal(last["current_model_state"][averaged[0]], formula[averaged[0]])


def test_performers_directions_stay_orthogonal_under_averaging(tmp_path: Path) -> None:
    module = classifier(net(features=4))
    _, run = fit(module, tmp_path, callbacks=[Redraw(), AveragedWeights(0.9)])
    state = torch.load(run.best, weights_only=True)["state_dict"]
    (directions,) = (tensor for name, tensor in state.items() if name.endswith("projection"))
    directions = directions / directions.norm(dim=-1, keepdim=True)
    pairs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).kron(torch.eye(2))
    torch.testing.assert_close(directions @ directions.T, pairs, rtol=0, atol=1e-5)


def test_nothing_is_swapped_in_before_the_first_update(tmp_path: Path) -> None:
    module, history = classifier(net()), History()
    before = module.state_dict()["net.head.weight"].clone()
    fit(module, tmp_path, max_epochs=1, num_sanity_val_steps=1, callbacks=[history, AveragedWeights()])
    torch.testing.assert_close(history.validated[0]["net.head.weight"], before, rtol=0, atol=0)


def test_a_new_training_of_the_same_module_starts_from_its_own_weights(tmp_path: Path) -> None:
    module, average = classifier(net()), AveragedWeights(0.9)
    with quiet():
        trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
                          enable_model_summary=False, enable_checkpointing=False, callbacks=[average],
                          default_root_dir=tmp_path)  # fmt: skip
        trainer.fit(module, datamodule=Noise())
        averaged = module.net.head.weight.detach().clone()
        trained = average._average["net.head.weight"].clone()
        average.on_train_start(trainer, module)
    torch.testing.assert_close(module.net.head.weight.detach(), trained, rtol=0, atol=0)
    torch.testing.assert_close(average._average["net.head.weight"], averaged, rtol=0, atol=0)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def train(folder: str, epochs: int, resume: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(0)
        run_folder = tmp_path / folder
        module = classifier(net())
        with quiet():
            from vix.training.runs import Run

            run = Run(run_folder / "runs" / "noise" / "1")
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=run_folder,
                callbacks=[BestAndLast(run), AveragedWeights(0.9)],
            )
            trainer.fit(module, datamodule=Noise(), ckpt_path=resume, weights_only=True)
        content: dict[str, Any] = torch.load(run.last, weights_only=True)
        content["path"] = run.last
        return content

    whole, half = train("whole", 4), train("half", 2)
    parts = train("parts", 4, half["path"])
    for key in ("state_dict", "current_model_state"):
        torch.testing.assert_close(whole[key], parts[key], rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_redrawing_performer_counts_optimiser_steps_and_its_checkpoint_has_its_directions(
    accumulate: int, tmp_path: Path
) -> None:
    module, history = classifier(net(redraw=2)), History()
    _, run = fit(
        module, tmp_path, max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[history, AveragedWeights(0.9)]
    )
    (name,) = (name for name in module.state_dict() if name.endswith("projection"))
    drawn = [state[name] for state in history.steps]
    assert [not torch.equal(*pair) for pair in pairwise(drawn)] == [n % 2 == 0 for n in range(1, len(drawn))]
    saved = torch.load(run.last, weights_only=True)
    steps = len(history.steps) - 1
    for state in (saved["state_dict"], saved["current_model_state"]):
        assert state[name.replace("projection", "steps")] == steps
    torch.testing.assert_close(saved["state_dict"][name], module.state_dict()[name], rtol=0, atol=0)


def test_without_averaging_a_resumed_training_goes_on_with_the_weights_and_not_their_average(tmp_path: Path) -> None:
    _, run = fit(classifier(net()), tmp_path, callbacks=[AveragedWeights(0.9)])
    history, module = History(), classifier(net())
    with quiet():
        trainer = Trainer(accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False,
                          enable_model_summary=False, enable_checkpointing=False, callbacks=[history],
                          default_root_dir=tmp_path)  # fmt: skip
        trainer.fit(module, datamodule=Noise(), ckpt_path=run.last, weights_only=True)
    saved = torch.load(run.last, weights_only=True)["current_model_state"]
    torch.testing.assert_close(history.steps[0], saved, rtol=0, atol=0)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="ema must be at least 0 and below 1"):
        AveragedWeights(decay)

"""An exponential moving average (EMA) of the weights, which is validated, tested and kept."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

# A checkpoint's keys for the weights that training goes on with, and, once it is loaded, for their average.
TRAINED = "current_model_state"
AVERAGE = "averaged_model_state"


class AveragedWeights(Callback):
    """Keeps a <- d a + (1 - d) w, w being the weights after an optimiser step, and has a validated in place of w.

    After n steps d is min(decay, (1 + n) / (10 + n)): a constant d near 1 would hold a short training to its random
    start. Averaged are parameters and, since they belong to the weights, the running statistics of batch norms. All
    other buffers are the net's own of the moment: the mean of two draws of Performer's directions is not orthogonal.

    A checkpoint has the average as its `state_dict`, so that whatever reads it uses that, and the weights themselves as
    `current_model_state`, from which `fit` goes on. When training ends the module has the average.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the growing d is that of
    TensorFlow's ExponentialMovingAverage with `num_updates`.

    Args:
        decay: The largest d, 0 to 1; 0.999 looks back some thousand steps.

    Raises:
        ValueError: If `decay` is not in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}
        self._step = 0
        # Whether module and average have changed places.
        self._swapped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights as they are, or from a checkpoint's average; the module is on its device by now."""
        if self._swapped:
            self._swap()
        self._live = averaged(pl_module)
        self._average = {
            name: self._average.get(name, live).detach().to(live.device, copy=True) for name, live in self._live.items()
        }
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates where the batch ended an optimiser step, which under accumulation not every one does."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self._average.values()), list(self._live.values()), self.updates)
        self.updates += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the average be validated, if there is one yet."""
        if self.updates and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._swap()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the weights back."""
        if self._swapped and trainer.state.fn == TrainerFn.FITTING:
            self._swap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module."""
        if self.updates:
            self._swap()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves both."""
        if not self.updates:
            return
        here = checkpoint["state_dict"]
        there = {name: self._average.get(name, tensor) for name, tensor in here.items()}
        checkpoint["state_dict"], checkpoint[TRAINED] = (here, there) if self._swapped else (there, here)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the average; the classifier has loaded the weights."""
        if average := checkpoint.get(AVERAGE):
            self._average = {name: average[name] for name in averaged(pl_module)}

    def state_dict(self) -> dict[str, Any]:
        """How many steps are averaged."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.updates = state_dict["updates"]

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self._average[name])
            self._average[name].copy_(kept)
        self._swapped = not self._swapped


def averaged(module: nn.Module) -> dict[str, Tensor]:
    """What is averaged, by all its names: parameters, running means and variances."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for prefix, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
            found |= {f"{prefix}.running_mean": part.running_mean, f"{prefix}.running_var": part.running_var}
    return found


def choose_trained(checkpoint: dict[str, Any]) -> None:
    """Gives a training that is resumed the weights that it stopped with, and sets their average aside."""
    if TRAINED in checkpoint:
        checkpoint[AVERAGE], checkpoint["state_dict"] = checkpoint["state_dict"], checkpoint.pop(TRAINED)

"""Dropout and its like go on after a resume where they stopped, so that a resumed run equals an uninterrupted one."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Keeps torch's random state in the checkpoint and restores it when the resumed training starts.

    The order and the augmentation of the data need no state: they are functions of seed, epoch and image.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The states of the processor's generator and of the devices'."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Notes what to restore; until training starts others may still draw."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores, the devices' states only where there are as many as there were."""
        if self._restored:
            torch.set_rng_state(self._restored["cpu"])
            if len(self._restored["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._restored["cuda"])
            self._restored = {}

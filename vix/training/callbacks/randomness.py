"""Dropout and its like go on after a resume where they stopped, so that a resumed run equals an uninterrupted one."""

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Keeps torch's random state in the checkpoint, each process's own, and restores it when training is resumed.

    The order and the augmentation of the data need no state: they are functions of seed, epoch and image.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The states of the processor's generator and of the devices', for each process; all of them must ask."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        ranks: list[Any] = [{"cpu": torch.get_rng_state(), "cuda": cuda}]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            ranks *= dist.get_world_size()
            dist.all_gather_object(ranks, ranks[0])
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Notes what to restore; until training starts others may still draw."""
        # checkpoints of version 0.1 have the first process's state alone
        self._restored = state_dict.get("ranks") or [state_dict]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores, each process its own; one for which there is nothing goes on with its seed (`RankSeed`)."""
        if trainer.global_rank < len(self._restored):
            state = self._restored[trainer.global_rank]
            torch.set_rng_state(state["cpu"])
            if len(state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["cuda"])
        self._restored = []

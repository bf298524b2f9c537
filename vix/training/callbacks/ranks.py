"""What several processes draw: the same weights at the start, then each its own dropout."""

import hashlib
import random

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


def rank_seed(seed: int, rank: int) -> int:
    """The seed of one process's training: the run's own for the first, for every other one that follows from it."""
    if rank == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} rank {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class RankSeed(Callback):
    """Gives every process but the first a seed of its own when training starts.

    All begin with the run's seed, since all make the same net; going on with it they would drop out the same places in
    different images. The first process goes on as if it were the only one.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds torch's and Python's generators."""
        if trainer.global_rank:
            own = rank_seed(self.seed, trainer.global_rank)
            torch.manual_seed(own)
            random.seed(own)

"""`fit --find lr` and `--find batch_size`: a suggestion instead of a training; nothing is kept."""

import math
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.tuner.tuning import Tuner

from vix.training.errors import UsageError

FINDERS = ("lr", "batch_size")
# Images of a batch, without and with a GPU: a processor gains nothing from large ones and says too late what it lacks.
LARGEST = (1024, 8192)


def suggest(what: str, trainer: Trainer, module: LightningModule, data: Any) -> str:
    """Looks for a setting and says how to use it.

    The rate is that of the steepest fall of the loss while the rate rises from 1e-5 to 1 over 100 steps (Smith,
    "Cyclical Learning Rates", WACV 2017, arXiv:1506.01186). The batch size is doubled until the device's memory is
    exhausted, all images are in one batch, or no larger one is worth trying.

    Args:
        what: `lr` or `batch_size`.
        trainer: One without loggers and callbacks of ours.
        module: The classifier; it is left as it was.
        data: The datamodule.

    Raises:
        UsageError: If nothing is found.
    """
    # few images make short epochs, and a search takes the steps that it needs
    trainer.fit_loop.max_epochs = 1_000_000
    tuner = Tuner(trainer)
    if what == "lr":
        found = tuner.lr_find(module, datamodule=data, min_lr=1e-5, max_lr=1.0, num_training=100, update_attr=False)
        rate = found.suggestion(skip_begin=20) if found else None
        if rate is None:
            raise UsageError("--find lr: the loss never fell; nothing to suggest")
        return f"steepest fall of the loss at lr {rate:.2g}; to use it: --model.optimizer.lr={rate:.2g}"
    data.prepare_data()
    data.setup("fit")
    start, images = data.batch_size, len(data.train_indices)
    largest = min(images, LARGEST[trainer.strategy.root_device.type == "cuda"])
    doublings = max(0, math.ceil(math.log2(largest / start)))
    found_size = tuner.scale_batch_size(module, datamodule=data, init_val=start, max_trials=doublings + 1)
    size = min(found_size or start, largest)
    tried = "no larger was tried" if size == largest else "twice as many do not"
    return f"batches of {size} images fit, {tried}; to use them: --data.batch_size={size}, with a rate of their own"

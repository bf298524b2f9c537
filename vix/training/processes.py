"""Which of a run's processes may write and speak."""

from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_only


def is_first() -> bool:
    """Whether this is the first or only process of its run; known before there is a trainer."""
    return not getattr(rank_zero_only, "rank", 0)


def is_rehearsal(trainer: Trainer) -> bool:
    """Whether this is `fast_dev_run`, which leaves no file."""
    return bool(getattr(trainer, "fast_dev_run", False))


def writes_files(trainer: Trainer) -> bool:
    """Whether this process writes the run's files: the first one, unless it is a rehearsal."""
    return trainer.is_global_zero and not is_rehearsal(trainer)

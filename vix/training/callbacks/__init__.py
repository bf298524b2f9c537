"""What happens beside training: checkpoints, the record of a run, predictions, progress."""

from vix.training.callbacks.average import AveragedWeights
from vix.training.callbacks.checkpoints import BestAndLast
from vix.training.callbacks.predictions import PredictionTable
from vix.training.callbacks.progress import LineProgress, RichProgress
from vix.training.callbacks.randomness import RandomState
from vix.training.callbacks.ranks import RankSeed
from vix.training.callbacks.record import RunRecord
from vix.training.callbacks.wandb_record import WandbRecord

__all__ = [
    "AveragedWeights",
    "BestAndLast",
    "LineProgress",
    "PredictionTable",
    "RandomState",
    "RankSeed",
    "RichProgress",
    "RunRecord",
    "WandbRecord",
]

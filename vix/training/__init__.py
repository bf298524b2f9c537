"""Training with Lightning: one module for every net, and the command line around it."""

from vix.training.classifier import ImageClassifier
from vix.training.muon import MuonAdamW
from vix.training.optim import Schedule, WarmupCosine, parameter_groups

__all__ = ["ImageClassifier", "MuonAdamW", "Schedule", "WarmupCosine", "parameter_groups"]

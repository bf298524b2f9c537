"""Augmentation by the batch: every image with draws of its own, on the device that the batch is on."""

from datamodules.transforms.augment import Augment, Pipeline
from datamodules.transforms.mixing import Mixing
from datamodules.transforms.policies import RandAugment, TrivialAugmentWide
from datamodules.transforms.random import RandomCropFlip, RandomErasing, RandomRotation

__all__ = [
    "Augment",
    "Mixing",
    "Pipeline",
    "RandAugment",
    "RandomCropFlip",
    "RandomErasing",
    "RandomRotation",
    "TrivialAugmentWide",
]

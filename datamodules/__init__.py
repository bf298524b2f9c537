"""Data sets as Lightning datamodules; they know no net, and `vix` knows no data set."""

from datamodules.base import ImageDataModule
from datamodules.cifar10 import CIFAR10
from datamodules.digits import Digits
from datamodules.errors import DataError
from datamodules.files import ImageFiles
from datamodules.image_folder import ImageFolder
from datamodules.samples import Batch
from datamodules.tiny_imagenet import TinyImageNet
from datamodules.transforms import Augment

__all__ = [
    "CIFAR10",
    "Augment",
    "Batch",
    "DataError",
    "Digits",
    "ImageDataModule",
    "ImageFiles",
    "ImageFolder",
    "TinyImageNet",
]

"""Digits: 1,797 scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
"""

import torch

from datamodules.base import ImageDataModule, Split
from datamodules.samples import ArraySamples
from datamodules.sampling import fixed_test_cut


class Digits(ImageDataModule):
    """Scikit-learn's handwritten digits at their own 8 x 8 pixels: no download, no files, a run takes seconds.

    There is no official split: a fixed, stratified fifth (359 images) is the test split, whatever the seeds. Positions
    count in scikit-learn's order. Nothing is cached, so `root`, `cache` and `in_memory` make no difference.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    image_size = (8, 8)
    channels = 1
    # of the 1,438 images that are not test images
    mean = (0.3059,)
    std = (0.3764,)
    # a mirrored or strongly sheared digit is no digit, or another one
    valid_augmentations = frozenset({"crop", "rotate", "erase", "mixup", "cutmix"})
    slug = "digits"

    def read(self, split: Split) -> ArraySamples | None:
        if split == "val":
            return None
        # the import takes seconds, and only this data set needs it
        from sklearn.datasets import load_digits

        scans = load_digits()
        labels = torch.from_numpy(scans.target).long()
        train, test = fixed_test_cut(labels)
        rows = test if split == "test" else train
        # ink is counted from 0 to 16
        images = torch.from_numpy(scans.images).mul(255 / 16).round().to(torch.uint8)
        return ArraySamples(images[rows, None], labels[rows], rows)

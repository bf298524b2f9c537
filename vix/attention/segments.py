"""Landmarks of a sequence: means over runs of neighbouring tokens."""

import torch
from torch import Tensor


def segment_means(x: Tensor, segments: int) -> Tensor:
    """Returns the means (b h s d) of s runs of neighbouring tokens of (b h n d), whose lengths differ by one at most.

    The longer runs come first, so both kinds are a plain reshape.
    """
    length, longer = divmod(x.shape[-2], segments)
    if not longer:
        return x.unflatten(-2, (segments, length)).mean(dim=-2)
    head, tail = x.split([longer * (length + 1), (segments - longer) * length], dim=-2)
    means = [head.unflatten(-2, (longer, length + 1)).mean(dim=-2)]
    means.append(tail.unflatten(-2, (segments - longer, length)).mean(dim=-2))
    return torch.cat(means, dim=-2)

"""Batch normalisation over the batches of all processes, on processors as well, where torch's own refuses to work."""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, and of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Shared:
    """Takes the mean and variance of a batch norm over all processes' images; each must have equally many.

    It comes before the norm's own class, which does all the rest: evaluation, and training in one process.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        """Maps (b c ...) to the same shape."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            result: Tensor = super().forward(x)  # type: ignore[misc]  # of the norm's own class
            return result
        processes, dims = dist.get_world_size(), (0, *range(2, x.ndim))
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = _Sum.apply(x.mean(dims)) / processes
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().mean(dims)) / processes
        # what is computed again for backward was counted before
        if self.track_running_stats and not getattr(self, "recomputing", False):
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            count = x.numel() // x.shape[1] * processes
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y


class SharedBatchNorms(LayerSync):
    """What `trainer.sync_batchnorm` means: the norms stay what they are, names and all, but for their statistics.

    torch's `SyncBatchNorm` takes the place of a norm, so that ours would lose what they do beyond torch's.
    """

    def apply(self, model: Any) -> Any:
        """Before training."""
        for part in model.modules():
            if isinstance(part, _BatchNorm) and not isinstance(part, _Shared):
                kind: Any = type(part)
                part.__class__ = _shared(kind)
        return model

    def revert(self, model: Any) -> Any:
        """After it."""
        for part in model.modules():
            if isinstance(part, _Shared):
                part.__class__ = type(part).__bases__[1]
        return model


@cache
def _shared(kind: Any) -> Any:
    return type(f"Shared{kind.__name__}", (_Shared, kind), {})

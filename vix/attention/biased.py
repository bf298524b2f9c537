"""Softmax attention with a learned bias on its logits, none of whose matrices is kept, for CPUs.

torch's fused attention for CPUs takes no bias that is learned, and no values of another width than keys.

Shapes: b batch, h heads, n queries, m keys, d key width per head, e value width per head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 2**18
"""Values of an image's matrices from which on this is faster than torch, which does all images at once."""
MOST = 2**21
"""Values of the matrices that are there at a time."""


class BiasedAttention(torch.autograd.Function):
    """Softmax attention image by image and by runs of queries; backward makes the weights again.

    Each step overwrites the matrices of the last, so what is written is in the cache when it is read.
    """

    @staticmethod
    def runs(bias: Tensor) -> list[slice]:
        """Returns runs of queries whose matrices have at most `MOST` values, for a bias (h n m)."""
        heads, queries, keys = bias.shape
        length = max(1, MOST // (heads * keys))
        return [slice(start, min(start + length, queries)) for start in range(0, queries, length)]

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Maps (b h n d), (b h m d), (b h m e) and a bias (h n m) to (b h n e)."""
        ctx.save_for_backward(q, k, v, bias)
        scale = q.shape[-1] ** -0.5
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        for run in BiasedAttention.runs(bias):
            weights = torch.empty_like(bias[:, run], memory_format=torch.contiguous_format)
            for image in range(len(q)):
                torch.baddbmm(bias[:, run], q[image, :, run], k[image].mT, alpha=scale, out=weights)
                torch.softmax(weights, dim=-1, out=weights)
                out[image, :, run] = weights @ v[image]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (b h n e) of the output to those of queries, keys, values and bias."""
        q, k, v, bias = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        for run in BiasedAttention.runs(bias):
            weights = torch.empty_like(bias[:, run], memory_format=torch.contiguous_format)
            of_logits = torch.empty_like(weights)
            for image in range(len(q)):
                of_out = grad[image, :, run]
                torch.baddbmm(bias[:, run], q[image, :, run], k[image].mT, alpha=scale, out=weights)
                torch.softmax(weights, dim=-1, out=weights)
                grad_v[image] += weights.mT @ of_out
                torch.bmm(of_out, v[image].mT, out=of_logits)
                torch.ops.aten._softmax_backward_data.out(of_logits, weights, -1, weights.dtype, grad_input=of_logits)
                if grad_bias is not None:
                    grad_bias[:, run] += of_logits
                grad_q[image, :, run] = of_logits @ k[image]
                grad_k[image] += of_logits.mT @ q[image, :, run]
        return grad_q.mul_(scale), grad_k.mul_(scale), grad_v, grad_bias


def suits_runs(q: Tensor, bias: Tensor) -> bool:
    """Whether `BiasedAttention` is faster for queries (b h n d) and a bias (h n m) than what torch has."""
    usual = torch.compiler.is_compiling() or torch.is_autocast_enabled(q.device.type)
    suits = bias.dtype == q.dtype and q.dtype in (torch.float32, torch.float64) and bias.shape[:-1] == q.shape[1:-1]
    return not usual and suits and q.device.type == "cpu" and bias.numel() >= LEAST

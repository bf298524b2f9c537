"""Zero tokens in front of a sequence, as the published Nyström attention has them, without making them.

Shapes: b batch, h heads, l landmarks, n tokens, d width of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vix.attention.segments import segment_means

# What torch's fused attention is made of on CPUs; an older or a newer torch may not have it.
_fused = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_fused_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def padded_landmarks(x: Tensor, landmarks: int, zeros: int, copies: int) -> Tensor:
    """Returns `segment_means` of (b h n d) as if `zeros` zero tokens stood in front, which are not made.

    With them the tokens must be a multiple of the landmarks. Those landmarks that are zero come first, `copies` of them
    and no more.
    """
    length = (x.shape[-2] + zeros) // landmarks
    missing = zeros % length
    means = [x.new_zeros(*x.shape[:-2], copies, x.shape[-1])]
    if missing:
        means.append(x[..., : length - missing, :].sum(dim=-2, keepdim=True) / length)
        x = x[..., length - missing :, :]
    if x.shape[-2]:
        means.append(segment_means(x, x.shape[-2] // length))
    return torch.cat(means, dim=-2)


class BesideZeros(torch.autograd.Function):
    """Softmax attention beside zero keys with zero values, through the parts of torch's fused attention on CPUs.

    Zero keys add their number to a query's denominator and nothing to its numerator, so the output shrinks by a factor.
    The fused backward makes the weights again from the logarithm of the denominator: given that of the whole one, and
    the output that belongs to it, its gradients are those of the other keys.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, zeros: int) -> Tensor:
        """Maps (b h l d), (b h n d), (b h n d) to (b h l d)."""
        assert _fused is not None
        out, of_keys = _fused(q, k, v)
        of_all = torch.logaddexp(of_keys, of_keys.new_tensor(math.log(zeros)))
        out = out * (of_keys - of_all).exp().unsqueeze(-1).to(out.dtype)
        ctx.save_for_backward(q, k, v, out, of_all)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (b h l d) of the output to those of q, k and v."""
        assert _fused_backward is not None
        return *_fused_backward(grad, *ctx.saved_tensors, 0.0, False), None


def attend_beside_zeros(q: Tensor, k: Tensor, v: Tensor, zeros: int) -> Tensor:
    """Returns softmax attention (b h l e) as if `zeros` zero keys with zero values stood in front of k.

    Where torch's parts for CPUs cannot be had, one zero key is made, which weighs as many by a mask.
    """
    here = q.device.type == "cpu" and _fused is not None and _fused_backward is not None
    if here and q.shape[-1] == v.shape[-1] and not torch.compiler.is_compiling():
        return BesideZeros.apply(q, k, v, zeros)
    mask = functional.pad(q.new_full((1,), math.log(zeros)), (k.shape[-2], 0)).expand(q.shape[-2], -1)
    k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
    return functional.scaled_dot_product_attention(q, k, v, mask)

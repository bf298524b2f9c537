"""Small layers that every body shares, and the rule for precision.

Shapes: b batch, n tokens, c width.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def check_counts(**counts: Any) -> None:
    """Refuses arguments that count something and are no positive whole number.

    Raises:
        ValueError: With the first such argument's name and value.
    """
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{name} must be a positive whole number, got {count!r}")


def check_rates(**rates: Any) -> None:
    """Refuses arguments that are probabilities of dropping something and are not in [0, 1).

    Raises:
        ValueError: With the first such argument's name and value.
    """
    for name, rate in rates.items():
        if type(rate) not in (int, float) or not 0 <= rate < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {rate!r}")


def widen(x: Tensor) -> Tensor:
    """Returns half-precision values as float32; float32 and float64 stay what they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Runs a function of tensors in at least float32 with autocast off; the result has the first tensor's dtype.

    What exponentiates, inverts or transforms loses its meaning in eight bits of mantissa; everything around it need not
    pay.
    """

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Tensor:
        first = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            out = function(*(widen(argument) if isinstance(argument, Tensor) else argument for argument in arguments))
        return out.to(first.dtype)

    return wrapped


class NormedFeedForward(torch.autograd.Function):
    """A feed-forward network of normalised tokens that keeps its input and the hidden values before their activation.

    What normalisation and GELU made is made again in backward: one pass over memory each, where keeping them
    costs three of the block's widths. Under autocast the products run in its dtype, and so does their backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        expand: Tensor,
        expand_bias: Tensor,
        contract: Tensor,
        contract_bias: Tensor,
        eps: float,
    ) -> Tensor:
        """Maps (b n c) to (b n c)."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            normed, mean, scale = torch.native_layer_norm(widen(x), (x.shape[-1],), widen(gain), widen(shift), eps)
            hidden = functional.linear(normed.to(dtype), expand.to(dtype), expand_bias.to(dtype))
            out = functional.linear(functional.gelu(hidden), contract.to(dtype), contract_bias.to(dtype))
        ctx.save_for_backward(x, mean, scale, hidden, gain, shift, expand, contract)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (b n c) of the output to those of the input and of the six parameters."""
        x, mean, scale, hidden, gain, shift, expand, contract = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dtype = hidden.dtype
            grad, hidden = grad.flatten(0, -2), hidden.flatten(0, -2)
            grad_contract = grad.mT @ functional.gelu(hidden)
            grad_hidden = torch.ops.aten.gelu_backward(grad @ contract.to(dtype), hidden)
            wide, wide_gain, wide_shift = widen(x), widen(gain), widen(shift)
            # In place where it can be: a fresh buffer costs more than the arithmetic.
            normed = torch.sub(wide, mean).mul_(scale).mul_(wide_gain).add_(wide_shift).to(dtype).flatten(0, -2)
            grad_expand = grad_hidden.mT @ normed
            grad_normed = (grad_hidden @ expand.to(dtype)).to(wide.dtype).view_as(x)
            grad_x, grad_gain, grad_shift = torch.ops.aten.native_layer_norm_backward(
                grad_normed, wide, (x.shape[-1],), mean, scale, wide_gain, wide_shift, (True, True, True)
            )
        products = (grad_expand, grad_hidden.sum(dim=0), grad_contract, grad.sum(dim=0))
        parameters = (gradient.to(gain.dtype) for gradient in (grad_gain, grad_shift, *products))
        return grad_x.to(x.dtype), *parameters, None


class FeedForward(nn.Module):
    """Mixes channels: linear, GELU, linear, each token by itself.

    Args:
        dim: Width of a token, in and out.
        hidden: Width between the two.
        dropout: Probability of dropping a value after either linear map.
    """

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Maps (b n c) to (b n c).

        Args:
            x: The tokens.
            norm: Normalises them first; given here rather than applied before, so that its result need not be kept.
        """
        fusible = norm is not None and torch.is_grad_enabled() and not (self.training and self.dropout.p > 0)
        # A compiler decides by itself what to keep.
        if norm is not None and fusible and not torch.compiler.is_compiling():
            weights = (self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias)
            return NormedFeedForward.apply(x, norm.weight, norm.bias, *weights, norm.eps)
        x = self.dropout(self.activation(self.expand(x if norm is None else norm(x))))
        return self.dropout(self.contract(x))


class DropPath(nn.Module):
    """Drops a whole residual branch for a random part of the images of a batch, and keeps the expectation.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.

    Args:
        rate: Probability that an image skips the branch, in [0, 1).

    Raises:
        ValueError: If the rate is outside [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        check_rates(drop_path=rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps the branch's output (b ...) to itself, or to zero for the images that skip it."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (kept / keep)

    def extra_repr(self) -> str:
        """The rate, for print(net)."""
        return f"rate={self.rate}"

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

MANY_TOKENS = 4096
"""Tokens of a batch from which on a linear map may be a convolution: with fewer that takes longer."""
DEEPEST = 1000
"""Blocks that a net may have; a slip of the pen could ask for more than can ever be made, one by one."""


def check_counts(**counts: Any) -> None:
    """Refuses arguments that count something and are no positive whole number, and a `depth` beyond `DEEPEST`.

    Raises:
        ValueError: With the first such argument's name and value.
    """
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{name} must be a positive whole number, got {count!r}")
        if name == "depth" and count > DEEPEST:
            raise ValueError(f"depth must be at most {DEEPEST}, got {count}")


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
    def wrapped(*arguments: Any, **options: Any) -> Tensor:
        first = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            wide = (widen(argument) if isinstance(argument, Tensor) else argument for argument in arguments)
            out = function(*wide, **options)
        return out.to(first.dtype)

    return wrapped


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook waits for a module or a part of it to be called, so that no call may be saved."""
    return any(
        part._forward_pre_hooks or part._forward_hooks or part._backward_pre_hooks or part._backward_hooks
        for part in module.modules()
    )


def has_onednn(x: Tensor) -> bool:
    """Whether torch convolves such values with oneDNN, whose kernels for x86 are faster than what else it has."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def suits_convolution(x: Tensor) -> bool:
    """Whether a linear map of (... c) is faster as a convolution of one pixel: for many tokens on several cores.

    oneDNN divides that between the cores better than MKL does a product, and adds the bias in passing.
    """
    # A compiler, which may leave the batch open, never gets to compare it.
    return (
        not torch.compiler.is_compiling()
        and x.numel() >= MANY_TOKENS * x.shape[-1]
        and has_onednn(x)
        and not torch.is_autocast_enabled("cpu")
        and torch.get_num_threads() > 1
    )


def as_image(x: Tensor) -> Tensor:
    """Sees (... c) as one image (1 c 1 n) of a row of pixels, whose channels lie side by side."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Does `functional.linear` on (... c) as a convolution of one pixel."""
    out = functional.conv2d(as_image(x), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def convolution_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient (c' c) of the weights of `as_convolution`, with the narrower side as outputs: faster."""
    outputs, inputs = grad.shape[-1], x.shape[-1]
    if outputs > inputs:
        return convolution_weight_gradient(x, grad).mT
    weight = x.new_empty(outputs, inputs, 1, 1)
    _, product, _ = torch.ops.aten.convolution_backward(
        as_image(grad), as_image(x), weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return product.flatten(1)


def map_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Does `functional.linear` on (... c) where autograd does not look, as a convolution where that is faster."""
    return (as_convolution if suits_convolution(x) else functional.linear)(x, weight, bias)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient (c' c) of a linear map's weights from that of its output (n c') and from its input (n c)."""
    return convolution_weight_gradient(grad, x) if suits_convolution(x) else grad.mT @ x


class LinearFunction(torch.autograd.Function):
    """A linear map as a convolution whose weights get their gradient by one too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Maps (... c) to (... c')."""
        ctx.save_for_backward(x, weight)
        return as_convolution(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (... c') of the output to those of the input, the weights and the bias."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            as_convolution(grad, weight.mT, None) if of_x else None,
            convolution_weight_gradient(grad, x) if of_weight else None,
            grad.flatten(0, -2).sum(dim=0) if of_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Does `functional.linear` on (... c), as a convolution where that is faster."""
    if not suits_convolution(x) or weight.dtype != x.dtype:
        return functional.linear(x, weight, bias)
    return LinearFunction.apply(x, weight, bias)


class Linear(nn.Linear):
    """A linear map of tokens, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (... c) to (... c)."""
        return linear(x, self.weight, self.bias)


class Recompute(torch.autograd.Function):
    """Keeps the inputs of a function and computes it again in backward, where that is cheaper than what it would keep.

    The function must be deterministic: dropout would drop other values the second time.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Returns function(*inputs)."""
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient of the output to those of the inputs that ask for one."""
        needs = ctx.needs_input_grad[1:]
        inputs = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, needs, strict=True)
        ]
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
            out = ctx.function(*inputs)
        asked = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        gradients = iter(torch.autograd.grad(out, asked, grad))
        return None, *(next(gradients) if needed else None for needed in needs)


def recompute(function: Callable[..., Tensor], first: Tensor, *others: Tensor | None) -> Tensor:
    """Returns function(first, *others), keeping only these for backward; a compiler decides by itself what to keep.

    Under autocast what the function casts itself would be cast no more in backward, so there it runs as it is.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(first.device.type) or not torch.is_grad_enabled():
        return function(first, *others)
    return Recompute.apply(function, first, *others)


class FeedForwardFunction(torch.autograd.Function):
    """A feed-forward network that keeps its input and the hidden values before their activation.

    What GELU made, and the normalisation before it, is made again in backward: one pass over memory each, where keeping
    them costs three of the block's widths. Under autocast the products run in its dtype, and so does their backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        expand: Tensor,
        expand_bias: Tensor,
        contract: Tensor,
        contract_bias: Tensor,
        gain: Tensor | None,
        shift: Tensor | None,
        eps: float,
        unread: bool,
    ) -> Tensor:
        """Maps (b n c) to (b n c); with a gain and a shift it is normalised first; `unread` values are anything."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            normed = x
            statistics: list[Tensor] = []
            if gain is not None and shift is not None:
                normed, *statistics = torch.native_layer_norm(widen(x), (x.shape[-1],), widen(gain), widen(shift), eps)
            hidden = map_rows(normed.to(dtype), expand.to(dtype), expand_bias.to(dtype))
            if unread:
                out = hidden.new_empty(*x.shape[:-1], len(contract))
            else:
                out = map_rows(functional.gelu(hidden), contract.to(dtype), contract_bias.to(dtype))
        ctx.save_for_backward(x, hidden, expand, contract, gain, shift, *statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (b n c) of the output to those of the input and of the parameters."""
        x, hidden, expand, contract, gain, shift, *statistics = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dtype = hidden.dtype
            grad, hidden = grad.flatten(0, -2), hidden.flatten(0, -2)
            grad_contract = weight_gradient(grad, functional.gelu(hidden))
            grad_hidden = map_rows(grad, contract.to(dtype).mT)
            # In place: the widest tensor of a block is not made twice.
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
            normed, wide = x, widen(x)
            if gain is not None:
                mean, scale = statistics
                # In place where it can be: a fresh buffer costs more than the arithmetic.
                normed = torch.sub(wide, mean).mul_(scale).mul_(widen(gain)).add_(widen(shift))
            grad_expand = weight_gradient(grad_hidden, normed.to(dtype).flatten(0, -2))
            grad_x = map_rows(grad_hidden, expand.to(dtype).mT).view_as(x)
            grad_gain = grad_shift = None
            if gain is not None:
                grad_x, grad_gain, grad_shift = torch.ops.aten.native_layer_norm_backward(
                    widen(grad_x), wide, (x.shape[-1],), mean, scale, widen(gain), widen(shift), (True, True, True)
                )
                grad_gain, grad_shift = grad_gain.to(gain.dtype), grad_shift.to(gain.dtype)
        products = (grad_expand, grad_hidden.sum(dim=0), grad_contract, grad.sum(dim=0))
        return (
            grad_x.to(x.dtype),
            *(product.to(expand.dtype) for product in products),
            grad_gain,
            grad_shift,
            None,
            None,
        )


class FeedForward(nn.Module):
    """Mixes channels: linear, GELU, linear, each token by itself.

    Args:
        dim: Width of a token, in and out.
        hidden: Width between the two.
        dropout: Probability of dropping a value after either linear map.
        last: Whether it ends a block, so that nobody reads what comes out when the block runs again for backward.
    """

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0, last: bool = False) -> None:
        super().__init__()
        self.last, self.recomputing = last, False
        self.expand = Linear(dim, hidden)
        self.contract = Linear(hidden, dim)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Maps (b n c) to (b n c).

        Args:
            x: The tokens.
            norm: Normalises them first; given here rather than applied before, so that its result need not be kept.
        """
        drops = self.training and self.dropout.p > 0
        # A compiler decides by itself what to keep.
        if torch.is_grad_enabled() and not drops and not torch.compiler.is_compiling():
            weights = (self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias)
            normalisation = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
            return FeedForwardFunction.apply(x, *weights, *normalisation, self.last and self.recomputing)
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

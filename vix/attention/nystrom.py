"""Nyström attention: softmax attention through a few landmarks and a pseudo-inverse.

Source: Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", AAAI 2021,
arXiv:2102.03902, equations 11 to 14. Cost per head for l landmarks: O((n + m) l (d + e) + l^3) time.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vix.attention.band import BandConvolution
from vix.attention.base import Attention, AttentionSpec
from vix.attention.depthwise import DepthwiseConvolution
from vix.attention.segments import with_means
from vix.attention.zeros import attend_beside_zeros, padded_landmarks
from vix.layers import check_counts, full_precision, has_onednn, widen

MOST_LANDMARKS = 64
"""By default, as published."""
KEEP_POWERS = 128
"""Landmarks from which on S^2 - 3.5 S is kept, not made again in backward: a product costs the cube of what is kept."""


def inverse_times(s: Tensor, block: Tensor, iterations: int, kept: list[Tensor] | None = None) -> Tensor:
    """Multiplies a block (h l e) by P(S), where Z0 P(A Z0) is what the iteration makes of its start Z0.

    Equation 13 of the paper is Z <- Z p(A Z) with p(S) = (13 I - 15 S + 7 S^2 - S^3) / 4. So S = A Z follows its own
    recurrence S <- S p(S), a polynomial of degree four and thus two products: with R = S^2 - 3.5 S it is
    (27 / 8 S - 11 / 4 R - R^2) / 4. Each p(S) is applied to the block X alone, so that neither Z nor p(S) is made: with
    Y = 11 / 4 X + R X it is (27 / 8 X + 7 / 2 Y - S Y) / 4. All S commute, so their order is free. The last step makes
    no R and goes by Horner's rule.

    Args:
        s: A Z0, of each head (h l l).
        block: What is multiplied.
        iterations: Steps of the iteration.
        kept: If given, gets the S and the block of each step and, but for the last, the R of many landmarks.
    """
    for _ in range(iterations - 1):
        powers = torch.baddbmm(s, s, s, beta=-3.5)
        if kept is not None:
            kept += [s, block, powers] if s.shape[-1] >= KEEP_POWERS else [s, block]
        inner = torch.baddbmm(block, powers, block, beta=2.75)
        block = inner.add(block, alpha=27 / 28).baddbmm_(s, inner, beta=0.875, alpha=-0.25)
        s = s.sub(powers, alpha=22 / 27).baddbmm_(powers, powers, beta=27 / 32, alpha=-0.25)
    if kept is not None:
        kept += [s, block]
    inner = torch.baddbmm(block, s, block, beta=7, alpha=-1)
    inner = torch.baddbmm(block, s, inner, beta=15, alpha=-1)
    return torch.baddbmm(block, s, inner, beta=3.25, alpha=-0.25)


def column_sums(a: Tensor, roots: Tensor | None) -> Tensor:
    """Returns the column sums (h 1 l) of each head's A (h l l), in which a landmark counts as many as it stands for.

    Args:
        a: The matrices.
        roots: Roots (l 1) of how many landmarks each stands for; None for one each.
    """
    return a.sum(dim=-2, keepdim=True) if roots is None else (roots.mT @ a) / roots.mT


def peak_dims(batch_start: bool) -> tuple[int, ...]:
    """Returns the dimensions of column sums over which the largest is taken: of all heads, as published, or of each.

    Rows of a softmax sum to one, so the start A^T / (max row sum * max column sum) needs the columns alone.
    """
    return (0, 1, 2) if batch_start else (1, 2)


def iterate(a: Tensor, block: Tensor, roots: Tensor | None, iterations: int, batch_start: bool) -> Tensor:
    """Multiplies a block (h l e) by what the iteration makes of its start Z0 = A^T / peak, A (h l l)."""
    peak = column_sums(a, roots).amax(peak_dims(batch_start), keepdim=True)
    return a.mT @ inverse_times(a @ a.mT / peak, block, iterations) / peak


class StepBack:
    """Goes back through the steps of `inverse_times`, from the last to the first, with D the gradient of S p(S).

    All S are symmetric, being made of A A^T, so of each gradient the symmetric part alone matters: H + H^T.

    Args:
        grad: The gradient of P(S) block (h l e).
        a: What S is like (h l l).
    """

    def __init__(self, grad: Tensor, a: Tensor) -> None:
        self.grad = grad.clone()
        """The gradient of the block, after the steps so far."""
        self.total = torch.empty_like(a)
        """The gradient of S, after the steps so far."""
        # Each step writes where the last one did: memory that the cache knows takes a third of the time of new memory.
        self.narrow = [torch.empty_like(grad) for _ in range(4)]
        self.wide = [torch.empty_like(a) for _ in range(4)]

    def last(self, s: Tensor, block: Tensor) -> None:
        """Goes back the last step, from which no S goes on, by Horner's rule: eight products as narrow as the block."""
        grad, half = self.grad, self.wide[0]
        inner, outer, once, twice = self.narrow
        torch.baddbmm(grad, s, grad, beta=7, alpha=-1, out=inner)
        torch.baddbmm(grad, s, inner, beta=15, alpha=-1, out=outer)
        torch.bmm(s, block, out=once)
        torch.bmm(s, once, out=twice)
        torch.bmm(outer, block.mT, out=half).mul_(-0.125)
        half.baddbmm_(inner, once.mT, alpha=0.125).baddbmm_(grad, twice.mT, alpha=-0.125)
        torch.add(half, half.mT, out=self.total)
        grad.baddbmm_(s, outer, beta=3.25, alpha=-0.25)

    def earlier(self, s: Tensor, block: Tensor, powers: Tensor | None) -> None:
        """Goes back a step by two products of l x l matrices, given R (else by three), and five as narrow as the block.

        R has a gradient of its own: F X^T / 4 from the block, with G its gradient and F = 7 / 2 G - S G, and from the
        recurrence -(11 / 4 D + R D + D R) / 4. Both go on to S together.
        """
        grad, total = self.grad, self.total
        inner, outer, *_ = self.narrow
        product, joined, half, square = self.wide
        if powers is None:
            powers = torch.baddbmm(s, s, s, beta=-3.5, out=square)
        torch.baddbmm(block, powers, block, beta=2.75, out=inner)
        torch.baddbmm(grad, s, grad, beta=3.5, alpha=-1, out=outer)
        torch.baddbmm(total, powers, total, beta=-11 / 32, alpha=-0.25, out=product)
        product.baddbmm_(outer, block.mT, alpha=0.125)
        torch.add(product, product.mT, out=joined)
        total.sub_(joined, alpha=112 / 27)
        torch.baddbmm(total, s, joined, beta=27 / 64, out=half).baddbmm_(grad, inner.mT, alpha=-0.125)
        torch.add(half, half.mT, out=total)
        grad.add_(outer, alpha=22 / 27).baddbmm_(powers, outer, beta=27 / 32, alpha=0.25)


class Iterate(torch.autograd.Function):
    """`iterate`, whose gradient is written out (`StepBack`); the peak is found again in backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, block: Tensor, roots: Tensor | None, iterations: int, batch_start: bool) -> Tensor:
        """Maps A (h l l) and a block (h l e) to (h l e)."""
        kept: list[Tensor] = []
        peak = column_sums(a, roots).amax(peak_dims(batch_start), keepdim=True)
        product = inverse_times((a @ a.mT).div_(peak), block, iterations, kept)
        ctx.save_for_backward(a, roots, product, *kept)
        ctx.batch_start = batch_start
        return (a.mT @ product).div_(peak)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (h l e) of the output to those of A and of the block."""
        # Asked for once: activation checkpointing makes them again each time.
        a, roots, product, *kept = ctx.saved_tensors
        dims = peak_dims(ctx.batch_start)
        with torch.autocast(grad.device.type, enabled=False):
            columns = column_sums(a, roots)
            peak = columns.amax(dims, keepdim=True)
            grad = grad.to(a.dtype) / peak
            of_product = a @ grad
            of_a, of_peak, of_block = Iterate.gradients(of_product, a, peak, *kept)
            of_peak -= (of_product * product).sum(dim=(-2, -1), keepdim=True).sum_to_size(peak.shape) / peak
            of_a.baddbmm_(product, grad.mT)
            # Equally large columns share it, as in torch's gradient of `amax`.
            largest = columns == peak
            of_columns = largest * (of_peak / largest.sum(dims, keepdim=True))
            of_a += of_columns if roots is None else roots * (of_columns / roots.mT)
        return of_a, of_block, None, None, None

    @staticmethod
    def gradients(grad: Tensor, a: Tensor, peak: Tensor, *steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of A and peak, through S = A A^T / peak, and of the block, given that of P(S) block."""
        *kept, s, block = steps
        back = StepBack(grad, a)
        back.last(s, block)
        while kept:
            powers = kept.pop() if a.shape[-1] >= KEEP_POWERS else None
            block, s = kept.pop(), kept.pop()
            back.earlier(s, block, powers)
        total = back.total
        grad_peak = (total * steps[0]).sum(dim=(-2, -1), keepdim=True).sum_to_size(peak.shape).neg() / peak
        return (total @ a).mul_(2 / peak), grad_peak, back.grad


@full_precision
def apply_inverse(
    q: Tensor, k: Tensor, block: Tensor, iterations: int | None, batch_start: bool, counts: Tensor | None = None
) -> Tensor:
    """Multiplies a block (b h l e) by the pseudo-inverse of A = softmax(q k^T / sqrt(d)) among landmarks, by iteration.

    Equal landmarks have equal rows in all that the iteration makes, so it may run among the different ones alone: in
    the basis of their normalised sums A is D^1/2 A D^1/2 with their counts D, and the block D^1/2 times itself.

    Args:
        q: The landmarks of the queries (b h l d).
        k: The landmarks of the keys (b h l d).
        block: What the inverse multiplies.
        iterations: Steps of the iteration; None takes the exact pseudo-inverse.
        batch_start: Whether the start is scaled by the largest column sum of the whole batch, as published.
        counts: How many landmarks each of these stands for (l), where that is not one.
    """
    heads = q.shape[:2]
    q, k, block = q.flatten(0, 1), k.flatten(0, 1), block.flatten(0, 1)
    logits = q @ k.mT * q.shape[-1] ** -0.5
    roots: Tensor | None = None
    if counts is None:
        a = logits.softmax(dim=-1)
    else:
        roots = counts.sqrt()[:, None]
        a = (logits + counts.log()).softmax(dim=-1) * (roots / roots.mT)
        block = roots * block
    if iterations is None:
        out = torch.linalg.pinv(a) @ block
    else:
        way = iterate if torch.compiler.is_compiling() else Iterate.apply
        out = way(a, block, roots, iterations, batch_start)
    return (out if roots is None else out / roots).unflatten(0, heads)


class NystromAttention(Attention):
    """Takes softmax(q L_k^T) pinv(softmax(L_q L_k^T)) softmax(L_q k^T) v for landmarks L, plus a convolution of v.

    Landmarks are means over runs of neighbouring tokens. Where the number of tokens is not a multiple of the landmarks,
    the runs differ by one token in length; the published code fills up with unmasked zeros in front (`as_published`).

    Args:
        spec: The place to fill.
        num_landmarks: Number of landmarks, clamped to the number of queries and of keys; left out, 64, or a quarter of
            the fewer of both where that is less: with more the inverse alone costs as much as softmax attention.
        iterations: Steps towards the pseudo-inverse; part of the function, since six do not converge. None is exact.
        residual_kernel: Taps of the depth-wise convolution over the values, one filter a head; None for none.
        as_published: Whether to scale the iteration's start by a maximum over the whole batch, so that an image's
            output depends on its batch mates, and to put zeros in front.

    Raises:
        ValueError: If an argument is out of range, or if a residual convolution is asked for where queries and keys are
            different tokens.
    """

    options_for_other_keys: ClassVar = {"residual_kernel": None}

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        num_landmarks: int | None = None,
        iterations: int | None = 6,
        residual_kernel: int | None = 33,
        as_published: bool = False,
    ) -> None:
        super().__init__(spec)
        check_counts(num_landmarks=MOST_LANDMARKS if num_landmarks is None else num_landmarks)
        if iterations is not None and iterations < 1:
            raise ValueError(f"iterations must be positive, or None for the exact pseudo-inverse, got {iterations}")
        if residual_kernel is not None and (residual_kernel < 1 or residual_kernel % 2 == 0):
            raise ValueError(
                f"residual_kernel must be odd and positive, or None for no convolution, got {residual_kernel}"
            )
        if spec.queries != spec.keys and (residual_kernel is not None or as_published):
            raise ValueError(
                f"queries ({spec.queries}) and keys ({spec.keys}) differ, so values cannot be added to outputs: "
                "give residual_kernel=None and as_published=False"
            )
        self.num_landmarks = num_landmarks
        self.iterations = iterations
        self.as_published = as_published
        self.residual = None
        if residual_kernel is not None:
            self.residual = nn.Conv2d(
                spec.heads,
                spec.heads,
                (residual_kernel, 1),
                padding=(residual_kernel // 2, 0),
                groups=spec.heads,
                bias=False,
            )

    def landmarks(self, queries: int, keys: int) -> int:
        """Returns the number of landmarks for these numbers of tokens; as published, as many as asked for."""
        if self.as_published:
            return MOST_LANDMARKS if self.num_landmarks is None else self.num_landmarks
        if self.num_landmarks is None:
            return max(1, min(MOST_LANDMARKS, queries // 4, keys // 4))
        return min(self.num_landmarks, queries, keys)

    def approach_softmax(self) -> None:
        """Starts the convolution at zero, so that it adds nothing at first."""
        if self.residual is not None:
            nn.init.zeros_(self.residual.weight)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps (b h n d), (b h m d), (b h m e) to (b h n e)."""
        return self.first(q, k, v, q.shape[-2])

    def first(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        """Maps the same to the outputs (b h count e) of the first queries, which ask the landmarks of all."""
        out = self.through_landmarks(q, k, v, count)
        if self.residual is None:
            return out
        # As far as the filter reaches.
        v = v[..., : count + self.residual.kernel_size[0] // 2, :]
        if v.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            added = self.residual(v)
        else:
            convolution = DepthwiseConvolution if has_onednn(v) else BandConvolution
            added = convolution.apply(v, self.residual.weight.flatten(1))
        return out + added[..., :count, :]

    def through_landmarks(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        """Does the same without the convolution.

        Of the published zeros in front no key is made, and of landmarks that are means of zeros a few: each stands for
        several and weighs as many, by the logarithm of their number in a mask.
        """
        n, landmarks, counts = q.shape[-2], self.landmarks(q.shape[-2], k.shape[-2]), None
        if not self.as_published or n % landmarks == 0:
            (q, q_landmarks), (k, k_landmarks) = with_means(q, landmarks), with_means(k, landmarks)
            block = functional.scaled_dot_product_attention(q_landmarks, k, v)
        else:
            zeros = -n % landmarks
            empty = zeros * landmarks // (n + zeros)
            # Products like a multiple of 16.
            copies = min(empty, (empty - landmarks) % 16 or 16)
            q_landmarks, k_landmarks = (padded_landmarks(x, landmarks, zeros, copies) for x in (q, k))
            block = attend_beside_zeros(q_landmarks, k, v, zeros)
            if copies < empty:
                counts = torch.ones(q_landmarks.shape[-2], dtype=widen(q).dtype, device=q.device)
                counts[:copies] = empty / copies
        block = apply_inverse(q_landmarks, k_landmarks, block, self.iterations, self.as_published, counts).to(q.dtype)
        mask = None if counts is None else counts.log().to(q.dtype).expand(count, -1)
        return functional.scaled_dot_product_attention(q[..., :count, :], k_landmarks, block, mask)

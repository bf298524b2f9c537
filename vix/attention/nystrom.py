"""Nyström attention: softmax attention through a few landmarks and a pseudo-inverse.

Source: Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", AAAI 2021,
arXiv:2102.03902, equations 11 to 14. Cost per head for l landmarks: O((n + m) l (d + e) + l^3) time.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vix.attention.base import Attention, AttentionSpec
from vix.layers import check_counts, full_precision


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


@full_precision
def apply_inverse(q: Tensor, k: Tensor, block: Tensor, iterations: int | None, batch_start: bool) -> Tensor:
    """Multiplies a block (b h l e) by the pseudo-inverse of A = softmax(q k^T / sqrt(d)) among landmarks, by iteration.

    Equation 13 of the paper is Z <- Z p(A Z) with p(S) = (13 I - 15 S + 7 S^2 - S^3) / 4. So S = A Z follows its own
    recurrence S <- S p(S), three products a step, and the p(S) are applied to the block alone: Z is never made.

    Args:
        q: The landmarks of the queries (b h l d).
        k: The landmarks of the keys (b h l d).
        block: What the inverse multiplies.
        iterations: Steps of the iteration; None takes the exact pseudo-inverse.
        batch_start: Whether the start is scaled by the largest column sum of the whole batch, as published.
    """
    a = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    if iterations is None:
        return torch.linalg.pinv(a) @ block
    columns = a.sum(dim=-2, keepdim=True)
    # Rows of a softmax sum to one, so the start A^T / (max row sum * max column sum) needs the columns alone.
    scale = columns.amax() if batch_start else columns.amax(dim=-1, keepdim=True)
    start = a.mT / scale
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    s = a @ start
    factors = []
    for step in range(iterations):
        factor = 3.25 * identity - 3.75 * s + 0.25 * (s @ s) @ (7 * identity - s)
        factors.append(factor)
        if step + 1 < iterations:
            s = s @ factor
    for factor in reversed(factors):
        block = factor @ block
    return start @ block


class NystromAttention(Attention):
    """Takes softmax(q L_k^T) pinv(softmax(L_q L_k^T)) softmax(L_q k^T) v for landmarks L, plus a convolution of v.

    Landmarks are means over runs of neighbouring tokens. Where the number of tokens is not a multiple of the landmarks,
    the runs differ by one token in length; the published code fills up with unmasked zeros in front (`as_published`).

    Args:
        spec: The place to fill.
        num_landmarks: Number of landmarks, clamped to the number of queries and of keys.
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
        num_landmarks: int = 64,
        iterations: int | None = 6,
        residual_kernel: int | None = 33,
        as_published: bool = False,
    ) -> None:
        super().__init__(spec)
        check_counts(num_landmarks=num_landmarks)
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

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps (b h n d), (b h m d), (b h m e) to (b h n e)."""
        n = q.shape[-2]
        landmarks = min(self.num_landmarks, n, k.shape[-2])
        if self.as_published:
            # As many landmarks as asked for, even where most are means of zeros.
            landmarks = self.num_landmarks
            q, k, v = (functional.pad(x, (0, 0, -n % landmarks, 0)) for x in (q, k, v))
        q_landmarks, k_landmarks = segment_means(q, landmarks), segment_means(k, landmarks)
        block = functional.scaled_dot_product_attention(q_landmarks, k, v)
        block = apply_inverse(q_landmarks, k_landmarks, block, self.iterations, self.as_published)
        out = functional.scaled_dot_product_attention(q, k_landmarks, block.to(q.dtype))
        if self.residual is not None:
            out = out + self.residual(v)
        return out[..., -n:, :]

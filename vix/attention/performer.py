"""Performer: softmax attention through positive orthogonal random features (FAVOR+).

Source: Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794, equation 5 and section
2.4. Cost per head for r features: O((n + m) r (d + e)) time and O((n + m) r) memory.
"""

import math

import torch
from torch import Tensor

from vix.attention.base import Attention, AttentionSpec
from vix.layers import full_precision

PUBLISHED_EPS = 1e-4


def orthogonal_features(count: int, dim: int) -> Tensor:
    """Draws `count` Gaussian directions of width `dim` (count dim), exactly orthogonal within each block of `dim`.

    Lengths are those of independent Gaussian vectors, so that each row alone is Gaussian (appendix B.2 of the paper).
    The signs of R's diagonal make Q uniform (Mezzadri, "How to generate random matrices from the classical compact
    groups", Notices of the AMS 54, 2007, section 5): without them Householder's QR gives directions of one half-space
    only, as in the published code, and the error to softmax stops falling with the number of features.
    """
    blocks = []
    for _ in range(math.ceil(count / dim)):
        q, r = torch.linalg.qr(torch.randn(dim, dim))
        blocks.append((q * r.diagonal().sign()).mT)
    return torch.cat(blocks)[:count] * torch.randn(count, dim).norm(dim=-1, keepdim=True)


@full_precision
def favor(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, as_published: bool) -> Tensor:
    """Computes phi(q) (phi(k)^T v) / (phi(q) phi(k)^T 1) with phi(x) = exp(W x - |x|^2 / 2 - M) + eps.

    Queries and keys are first scaled by d^-1/4. The paper's factor r^-1/2 cancels. M, the stabiliser, cancels but for
    eps, the regulariser.

    Args:
        q: Queries (b h n d).
        k: Keys (b h m d).
        v: Values (b h m e).
        projection: The random directions W (r d).
        as_published: M is the maximum of W x before the norm term, for keys that of the whole batch, and eps is 1e-4.
            Otherwise M is the maximum of the whole exponent, per token for queries and per image and head for keys, and
            eps is sqrt(d) / (2 r): a shrinkage towards the mean value that fades as features are added.
    """
    scale = q.shape[-1] ** -0.25
    q, k = q * scale, k * scale
    q_products, k_products = q @ projection.mT, k @ projection.mT
    q_exponents = q_products - q.square().sum(dim=-1, keepdim=True) / 2
    k_exponents = k_products - k.square().sum(dim=-1, keepdim=True) / 2
    if as_published:
        eps = PUBLISHED_EPS
        q_top, k_top = q_products.amax(dim=-1, keepdim=True), k_products.amax()
    else:
        eps = math.sqrt(q.shape[-1]) / (2 * projection.shape[0])
        # Gradients pass through both: beside this eps they are as large as the rest.
        q_top, k_top = q_exponents.amax(dim=-1, keepdim=True), k_exponents.amax(dim=(-2, -1), keepdim=True)
    q_features, k_features = (q_exponents - q_top).exp() + eps, (k_exponents - k_top).exp() + eps
    # One more column of ones makes one product serve numerator and denominator.
    context = k_features.mT @ torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    sums = q_features @ context
    return sums[..., :-1] / sums[..., -1:]


class Performer(Attention):
    """Replaces exp(q k^T / sqrt(d)) by phi(q) phi(k)^T with random features phi, so that keys are summed once.

    The directions are drawn once, shared by heads and images, and saved with the weights (buffer `projection`). The
    regulariser was chosen by the error to softmax over q, k of standard deviation 0.25 to 2: unregularised features are
    worse than the mean of the values from 0.7 on (`tests/attention/test_performer.py` prints the table).

    Args:
        spec: The place to fill.
        features: Number of random features; left out, int(d ln d) as published (110 for a head of 32).
        as_published: Whether to use the published stabiliser and regulariser, with which an image's output depends on
            its batch mates and collapses to the mean value for large q and k.

    Raises:
        ValueError: If `features` is not positive.
    """

    projection: Tensor

    def __init__(self, spec: AttentionSpec, *, features: int | None = None, as_published: bool = False) -> None:
        super().__init__(spec)
        if features is not None and features < 1:
            raise ValueError(f"features must be positive, or None for int(d ln d), got {features}")
        features = features or max(1, int(spec.head_dim * math.log(spec.head_dim)))
        self.as_published = as_published
        self.register_buffer("projection", orthogonal_features(features, spec.head_dim))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps (b h n d), (b h m d), (b h m e) to (b h n e)."""
        return favor(q, k, v, self.projection, self.as_published)

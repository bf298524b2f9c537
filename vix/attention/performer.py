"""Performer: softmax attention through positive orthogonal random features (FAVOR+).

Source: Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794, equation 5 and section
2.4. Cost per head for r features: O((n + m) r (d + e)) time and O((n + m) r) memory.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vix.attention.base import Attention, AttentionSpec
from vix.layers import full_precision

# Regularisers. Ours is small: one that errs less on random queries and keys, sqrt(d) / (2 r), takes the gradient from
# peaked attention, and ViP learnt Digits to 92 % with it and to 96 % without.
EPS, PUBLISHED_EPS = 1e-5, 1e-4


# Variance of a width below which it does not ask for a balance of its own.
LEAST_VARIANCE = 1e-6


def orthogonal_features(count: int, dim: int, *, opposite: bool) -> Tensor:
    """Draws `count` Gaussian directions of width `dim` (count dim), exactly orthogonal within each block of `dim`.

    If `opposite`, the second half is the first with its sign turned (of an odd number, less one): features of w and -w
    err against each other, so that the variance never is above that of independent ones and vanishes where q + k does
    (the paper's lemma 2, SM-hyp+).

    Lengths are those of independent Gaussian vectors, so that each row alone is Gaussian (appendix B.2 of the paper).
    The signs of R's diagonal make Q uniform (Mezzadri, "How to generate random matrices from the classical compact
    groups", Notices of the AMS 54, 2007, section 5): without them Householder's QR gives directions of one half-space
    only, as in the published code, and the error to softmax stops falling with the number of features.
    """
    drawn = math.ceil(count / 2) if opposite else count
    q, r = torch.linalg.qr(torch.randn(math.ceil(drawn / dim), dim, dim))
    directions = (q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]).mT.flatten(0, 1)
    features = directions[:drawn] * torch.randn(drawn, dim).norm(dim=-1, keepdim=True)
    return torch.cat([features, -features[: count - drawn]])


def default_features(width: int, *, as_published: bool) -> int:
    """Returns how many features a head of a width gets: d ln d, by default rounded down to blocks of d.

    Multiples of 16 suit products and passes better, and directions in pairs of opposite sign err less than more of the
    published ones.
    """
    if as_published:
        return max(1, int(width * math.log(width)))
    return width * max(1, int(math.log(width)))


def regulariser(as_published: bool) -> float:
    """Returns eps, which is added to features whose largest is one."""
    return PUBLISHED_EPS if as_published else EPS


def with_ones(v: Tensor) -> Tensor:
    """Appends a column of ones to the values, so that one product gives numerator and denominator."""
    return torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)


def half_square(x: Tensor) -> Tensor:
    """Returns |x|^2 / 2 of x scaled by d^-1/4, one number a token (... 1)."""
    return x.square().sum(dim=-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)


class Shortened(NamedTuple):
    """Queries and keys of an image and head, shortened in two ways that softmax does not see.

    Both are centred: with c the mean query, exp(q k) = exp((q - c) k) exp(c k), where the last factor belongs to the
    key and is exact, and a shift of all keys cancels. Both are balanced: each width of the queries is multiplied with
    what the same width of the keys is divided by, so that they vary alike. The error of random features grows
    exponentially with |q + k|^2. (Neither is in the paper.)

    Balance and mean query are factors and a shift of the random directions, which are fewer than the tokens.
    """

    q: Tensor
    """Centred (b h n d)."""
    k: Tensor
    """Centred (b h m d)."""
    mean: Tensor
    """The mean query (b h 1 d)."""
    of_q: Tensor
    """Variance of each width of the queries (b h 1 d), and a little more."""
    of_k: Tensor
    """The same of the keys."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> "Shortened":
        """Shortens queries (b h n d) and keys (b h m d)."""
        # Heads lie among each other: after one copy every pass takes a third.
        q, k = q.contiguous(), k.contiguous()
        q_mean, k_mean = (x.mean(dim=-2, keepdim=True) for x in (q, k))
        q, k = q - q_mean, k - k_mean
        of_q, of_k = (x.square().mean(dim=-2, keepdim=True) + LEAST_VARIANCE for x in (q, k))
        return cls(q, k, q_mean, of_q, of_k)

    def balance(self) -> Tensor:
        """Returns what queries are multiplied with and keys divided by (b h 1 d)."""
        return (self.of_k / self.of_q) ** 0.25

    def maps(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the directions of queries and of keys (b h d r), given those of both scaled by d^-1/4 (d r)."""
        balance = self.balance().mT
        return columns * balance, columns / balance + self.mean.mT * self.q.shape[-1] ** -0.5

    def weights(self) -> Tensor:
        """Returns what the squares of a key are multiplied with in its norm term (b h 1 d)."""
        return (self.of_q / self.of_k).sqrt() * (0.5 * self.q.shape[-1] ** -0.5)

    def norm(self) -> Tensor:
        """Returns the norm term of each key (b h m 1)."""
        return (self.k.square() * self.weights()).sum(dim=-1, keepdim=True)

    def gradients(self, grad_q: Tensor, grad_k: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradients of the queries and keys as they came.

        Args:
            grad_q: What the products with their directions give the centred queries; is written to.
            grad_k: The same of the centred keys; is written to.
            rows: Sums of the gradients of each key's exponents (b h m 1).
        """
        n, m = self.q.shape[-2], self.k.shape[-2]
        by_rows = self.k * rows
        grad_mean = by_rows.sum(dim=-2, keepdim=True) * self.q.shape[-1] ** -0.5
        grad_k.addcmul_(by_rows, self.weights(), value=-2)
        of_log_balance = (grad_q * self.q).sum(dim=-2, keepdim=True) + grad_mean * self.mean
        of_log_balance -= torch.mul(grad_k, self.k, out=by_rows).sum(dim=-2, keepdim=True)
        grad_q.addcmul_(self.q, of_log_balance / (-2 * n * self.of_q))
        grad_k.addcmul_(self.k, of_log_balance / (2 * m * self.of_k))
        grad_q += grad_mean / n - grad_q.mean(dim=-2, keepdim=True)
        grad_k -= grad_k.mean(dim=-2, keepdim=True)
        return grad_q, grad_k


def favor(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, as_published: bool, first: int) -> Tensor:
    """Computes phi(q) (phi(k)^T v) / (phi(q) phi(k)^T 1) with phi(x) = exp(W x - |x|^2 / 2 - M) + eps.

    Queries and keys are first scaled by d^-1/4. The paper's factor r^-1/2 cancels. M, the stabiliser, cancels but for
    eps, the regulariser. This is the plain form, for torch.compile to fuse; `Favor` is held to it.

    By default both are `Shortened` before.

    Args:
        q: Queries (b h n d).
        k: Keys (b h m d).
        v: Values (b h m e).
        projection: The random directions W (r d).
        as_published: Nothing is shortened, and M is the maximum of W x before the norm term, for keys that of the whole
            batch. Otherwise M is the maximum of the whole exponent, per token for queries and per image and head for
            keys.
        first: How many queries, from the first on, have an output; the others only count in what shortens.
    """
    eps, scaled = regulariser(as_published), projection.mT * q.shape[-1] ** -0.25
    # Gradients pass through the stabiliser too, as eps lets them.
    if as_published:
        q = q[..., :first, :]
        q_products, k_products = q @ scaled, k @ scaled
        q_exponents, k_exponents = q_products - half_square(q), k_products - half_square(k)
        q_top, k_top = q_products.amax(dim=-1, keepdim=True), k_products.amax()
    else:
        shortened = Shortened.of(q, k)
        of_q, of_k = shortened.maps(scaled)
        q_exponents = shortened.q[..., :first, :] @ of_q
        k_exponents = shortened.k @ of_k - shortened.norm()
        q_top, k_top = q_exponents.amax(dim=-1, keepdim=True), k_exponents.amax(dim=(-2, -1), keepdim=True)
    q_features, k_features = (q_exponents - q_top).exp() + eps, (k_exponents - k_top).exp() + eps
    sums = q_features @ (k_features.mT @ with_ones(v))
    return sums[..., :-1] / sums[..., -1:]


class Favor(torch.autograd.Function):
    """The same as `favor` in fewer passes over the features, of which the keys' are kept and the queries' made again.

    Query features are needed up to a factor per token, which cancels: phi(q) ~ f softmax(W q) + g, where the softmax is
    one fused pass, f is exp(-|q|^2 / 2) as published and 1 otherwise, and g is eps times the largest softmax. The
    regulariser is never added to a feature: it enters the products as a term of rank one. Sums over features are sums
    over values instead, which are fewer. Kept for backward are the inputs, the keys' features, the output, which the
    projection behind it keeps anyway, the context (r e+1) of each head and two numbers a query.
    """

    @staticmethod
    def columns(projection: Tensor) -> Tensor:
        """Returns directions (r d) scaled by d^-1/4 as columns (d r).

        The first is repeated until their number is a multiple of 16, if that is an eighth more at most: products and
        passes are then faster. A feature that is made twice changes no maximum; whoever sums over features gives the
        copies no weight.
        """
        copies = -len(projection) % 16
        repeated = projection[:1].expand(copies if 8 * copies <= len(projection) else 0, -1)
        return (torch.cat([projection, repeated]) * projection.shape[-1] ** -0.25).mT.contiguous()

    @staticmethod
    def products(x: Tensor, columns: Tensor) -> Tensor:
        """Returns x W^T (b h n r) head by head, given W^T (d r), or one for each head; all at once is half as fast."""
        b, h = x.shape[:2]
        return torch.bmm(x.contiguous().flatten(0, 1), columns.expand(b, h, -1, -1).flatten(0, 1)).unflatten(0, (b, h))

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, as_published: bool, first: int
    ) -> Tensor:
        """Maps (b h n d), (b h m d), (b h m e) and directions (r d) to the first of (b h n e), stored as (b n h e)."""
        b, h = q.shape[:2]
        eps = regulariser(as_published)
        count, columns = projection.shape[0], Favor.columns(projection)
        inputs, of_q = (q, k, v), columns

        # Keys: one maximum for the whole batch, before the norm term, or one a head.
        if as_published:
            norm, features = half_square(k), Favor.products(k, columns)
        else:
            shortened = Shortened.of(q, k)
            of_q, of_k = shortened.maps(columns)
            q, k = shortened.q, shortened.k
            # The norm term is one more width, in the same pass.
            with_norm = torch.cat([k, shortened.norm()], dim=-1)
            features = Favor.products(with_norm, functional.pad(of_k, (0, 0, 0, 1), value=-1))
        tops = features.amax(dim=-1).view(1 if as_published else b * h, -1)
        top, token = tops.max(dim=-1)
        top = top.expand(b * h).view(b, h, 1, 1)
        features = features.sub_(norm + top if as_published else top).exp_()
        q = q[..., :first, :]

        values = with_ones(v)
        context = features.mT @ values
        context += eps * values.sum(dim=-2, keepdim=True)
        context[..., count:, :] = 0
        weights = Favor.products(q, of_q).softmax(dim=-1)
        largest = weights.amax(dim=-1, keepdim=True)
        sums = weights @ context
        if as_published:
            sums *= half_square(q).neg().exp()
        sums += (eps * largest) * context.sum(dim=-2, keepdim=True)
        normaliser = sums[..., -1:].clone()
        out = q.new_empty(b, q.shape[-2], h, v.shape[-1]).transpose(1, 2)
        torch.div(sums[..., :-1], normaliser, out=out)
        ctx.save_for_backward(*inputs, projection, out, context, largest, normaliser, features, token)
        ctx.as_published = as_published
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradient (b h n e) of the output to those of q, k and v."""
        with torch.autocast(grad.device.type, enabled=False):
            return *Favor.gradients(grad, *ctx.saved_tensors, as_published=ctx.as_published), None, None, None

    @staticmethod
    def gradients(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        projection: Tensor,
        out: Tensor,
        context: Tensor,
        largest: Tensor,
        normaliser: Tensor,
        features: Tensor,
        token: Tensor,
        *,
        as_published: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of q, k and v from that of the output."""
        eps, count, scale = regulariser(as_published), projection.shape[0], q.shape[-1] ** -0.25
        of_q = of_k = Favor.columns(projection).expand(*q.shape[:2], -1, -1)
        shortened = None if as_published else Shortened.of(q, k)
        if shortened is not None:
            of_q, of_k = shortened.maps(of_q)
            q, k = shortened.q, shortened.k
        others = q.shape[-2] - grad.shape[-2]
        q = q[..., : grad.shape[-2], :]

        # Of the quotient: the numerator's e columns, then the denominator's one.
        grad_sums = torch.cat([grad, -(grad * out).sum(dim=-1, keepdim=True)], dim=-1).div_(normaliser)
        floor = eps * largest
        grad_context = floor.mT @ grad_sums
        # The gradient is orthogonal to the sums, so that of all exponents of a query together is the regulariser's.
        row = -floor * (grad_sums @ context.sum(dim=-2, keepdim=True).mT)
        if as_published:
            grad_sums *= half_square(q).neg().exp()

        # Of the queries' exponents. The stabiliser takes away from the largest what it gives to all.
        weights = Favor.products(q, of_q).softmax(dim=-1)
        grad_context = grad_context + weights.mT @ grad_sums
        grad_context[..., count:, :] = 0
        grad_exponents = (grad_sums @ context.mT).mul_(weights)
        is_largest = weights.eq_(largest)
        grad_exponents -= is_largest.mul_(row / is_largest.sum(dim=-1, keepdim=True))
        grad_q = grad_exponents @ of_q.mT
        if as_published:
            grad_q -= row * scale**2 * q
        grad_q = functional.pad(grad_q, (0, 0, 0, others)) if others else grad_q

        # Of the keys' exponents.
        values = with_ones(v)
        grad_values = features @ grad_context
        rows = (values * grad_values).sum(dim=-1).view(len(token), -1, 1)
        grad_v = grad_values[..., :-1] + eps * grad_context[..., :-1].sum(dim=-2, keepdim=True)
        grad_k = (values @ grad_context.mT).mul_(features) @ of_k.mT
        # What the maximum takes away; the norm term stands outside of the published one.
        place = token[:, None, None]
        gradients = grad_k.view(len(token), -1, k.shape[-1])
        top_features = features.view(len(token), -1, features.shape[-1]).gather(
            1, place.expand(-1, -1, features.shape[-1])
        )
        total, largest_of = rows.sum(dim=1, keepdim=True), top_features.argmax(dim=-1, keepdim=True)
        column = of_k.flatten(0, 1)[: len(token)].gather(-1, largest_of.expand(-1, k.shape[-1], -1))
        gradients.scatter_add_(1, place.expand(-1, -1, k.shape[-1]), -total * column.mT)
        if shortened is None:
            return grad_q, grad_k.sub_(rows.view(*k.shape[:-1], 1) * scale**2 * k), grad_v
        rows.scatter_add_(1, place, -total)
        return *shortened.gradients(grad_q, grad_k, rows.view(*k.shape[:-1], 1)), grad_v


@full_precision
def attend(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, as_published: bool, first: int) -> Tensor:
    """Computes `favor`, by hand where nothing fuses it for us."""
    if torch.compiler.is_compiling():
        return favor(q, k, v, projection, as_published, first)
    return Favor.apply(q, k, v, projection, as_published, first)


def _read_steps(performer: nn.Module, incompatible: Any) -> None:
    """Goes on counting where a loaded state stopped."""
    assert isinstance(performer, Performer)
    performer._steps = int(performer.steps)


class Performer(Attention):
    """Replaces exp(q k^T / sqrt(d)) by phi(q) phi(k)^T with random features phi, so that keys are summed once.

    The directions are drawn once, in pairs of opposite sign, shared by heads and images, and saved with the weights
    (buffer `projection`). Queries and keys are shortened, which leaves softmax as it is and takes error away where the
    tokens of an image have something in common or queries and keys vary in different widths
    (`tests/attention/test_performer.py` prints the table). A trained net may leave softmax all the same: `explain`
    shows how far.

    Args:
        spec: The place to fill.
        features: Number of random features; left out, int(d ln d) as published (110 for a head of 32), or else the
            most whole blocks of d in it (96).
        as_published: Whether to use the published stabiliser and regulariser, shorten nothing and draw no pairs: an
            image's output then depends on its batch mates and collapses to the mean value for large q and k.
        redraw: Optimiser steps after which the directions are drawn anew, each time; None keeps them.
            `ImageClassifier` counts; in a loop of your own call `after_step`.

    Raises:
        ValueError: If `features` or `redraw` is not positive.
    """

    projection: Tensor
    steps: Tensor

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        features: int | None = None,
        as_published: bool = False,
        redraw: int | None = None,
    ) -> None:
        super().__init__(spec)
        if features is not None and features < 1:
            raise ValueError(f"features must be positive, or None for the usual number, got {features}")
        if redraw is not None and redraw < 1:
            raise ValueError(f"redraw must be positive, or None for never, got {redraw}")
        features = features or default_features(spec.head_dim, as_published=as_published)
        self.as_published = as_published
        # What shortens the queries is taken from all of them.
        self.queries_apart = as_published
        self.register_buffer("projection", orthogonal_features(features, spec.head_dim, opposite=not as_published))
        self.redraw = redraw
        if redraw is not None:
            self.register_buffer("steps", torch.tensor(0))
            # torch has no types for it
            self.register_load_state_dict_post_hook(_read_steps)  # type: ignore[no-untyped-call]
        # The same number where asking for it does not wait for the device.
        self._steps = 0

    @torch.no_grad()
    def after_step(self) -> None:
        """Counts an optimiser step, and draws new directions when it is time.

        Not done by `forward`, which runs more than once a step where gradients are accumulated or blocks recomputed.
        """
        if self.redraw is None:
            return
        self._steps += 1
        self.steps.fill_(self._steps)
        if self._steps % self.redraw == 0:
            self.projection.copy_(orthogonal_features(*self.projection.shape, opposite=not self.as_published))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps (b h n d), (b h m d), (b h m e) to (b h n e)."""
        return self.first(q, k, v, q.shape[-2])

    def first(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        """Maps the same to the outputs (b h count e) of the first queries."""
        return attend(q, k, v, self.projection, self.as_published, count)

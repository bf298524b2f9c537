"""Linformer: softmax attention over a learned, shorter list of keys.

Source: Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768, equation 7.
Cost per head: O((n + m) r (d + e)) time and O(n + r (d + e)) memory; r is the paper's k (k means keys here).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vix.attention.base import AttentionSpec, ShorteningAttention
from vix.layers import check_counts, check_rates, linear, map_rows, weight_gradient, widen
from vix.resample import resample_sum


def mixed(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiplies the transpose of a matrix (m r) and each (m c) of (... m c)."""
    # For three axes torch.matmul would copy all of x, transposed, and keep that.
    return torch.bmm(matrix.mT.expand(x.shape[0], -1, -1), x) if x.ndim == 3 else matrix.mT @ x


def find(x: Tensor, asked: Tensor, of_keys: Tensor, of_values: Tensor) -> tuple[Tensor, ...]:
    """Attends to shortened tokens without shortening them: (E^T x) a = E^T (x a), and no product is wider than a.

    Args:
        x: The tokens (b m c).
        asked: What each head of each query looks for in a token (b a c).
        of_keys: The keys' matrix (m r).
        of_values: The values' matrix (m r).

    Returns:
        The logits (b m a) of tokens, the weights (b r a) of shortened ones, those (b m a) of tokens and what these
        weigh (b a c).
    """
    logits = x @ asked.mT
    weights = torch.einsum("mr,bma->bra", of_keys, logits).softmax(dim=-2)
    shares = torch.einsum("mr,bra->bma", of_values, weights)
    return logits, weights, shares, shares.mT @ x


class Find(torch.autograd.Function):
    """What `find` finds, so that both gradients of the tokens come from one product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, asked: Tensor, of_keys: Tensor, of_values: Tensor) -> Tensor:
        """Maps (b m c), (b a c) and two matrices (m r) to (b a c)."""
        *made, found = find(x, asked, of_keys, of_values)
        ctx.save_for_backward(x, asked, of_keys, of_values, *made)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Maps the gradient (b a c) of what was found to those of the four."""
        x, asked, of_keys, of_values, logits, weights, shares = ctx.saved_tensors
        grad_shares = x @ grad.mT
        grad_weights = torch.einsum("mr,bma->bra", of_values, grad_shares) * weights
        grad_short = grad_weights - weights * grad_weights.sum(dim=-2, keepdim=True)
        grad_logits = torch.einsum("mr,bra->bma", of_keys, grad_short)
        return (
            torch.cat([grad_logits, shares], dim=-1) @ torch.cat([asked, grad], dim=-2),
            grad_logits.mT @ x,
            torch.einsum("bma,bra->mr", logits, grad_short),
            torch.einsum("bma,bra->mr", grad_shares, weights),
        )


class Project(torch.autograd.Function):
    """Queries of tokens, and keys and values of shortened tokens, so that both gradients join within a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, queries: int, *matrices: Tensor) -> tuple[Tensor, ...]:
        """Maps (b m c), by the first rows of weights (p c), to (b m queries).

        Shortened by each matrix (m r), they go through an equal share of the other rows to (b r share).
        """
        of_q, others = weight[:queries], weight[queries:].chunk(len(matrices))
        short = [mixed(matrix, x) for matrix in matrices]
        ctx.save_for_backward(x, weight, *matrices, *short)
        ctx.queries = queries
        return map_rows(x, of_q), *map(functional.linear, short, others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradients of what came out to those of the tokens, the weights and the matrices."""
        x, weight, *kept = ctx.saved_tensors
        matrices, short = kept[: len(grads)], kept[len(grads) :]
        of_x, of_weight, _, *of_matrices = ctx.needs_input_grad
        of_q, others = weight[: ctx.queries], weight[ctx.queries :].chunk(len(grads))
        grads_short = [of_part @ part for of_part, part in zip(grads, others, strict=True)]
        grad_x = grad_weight = None
        if of_x:
            grad_x = map_rows(grad, of_q.mT)
            for matrix, grad_short in zip(matrices, grads_short, strict=True):
                # In place, which a gradient from outside could not be.
                grad_x.baddbmm_(matrix.expand(len(x), -1, -1), grad_short)
        if of_weight:
            pairs = ((grad, x), *zip(grads, short, strict=True))
            grad_weight = torch.cat([weight_gradient(out.flatten(0, 1), part.flatten(0, 1)) for out, part in pairs])
        grads_matrices = (
            torch.addbmm(matrix, x, grad_short.mT, beta=0) if asked else None
            for asked, matrix, grad_short in zip(of_matrices, matrices, grads_short, strict=True)
        )
        return grad_x, grad_weight, None, *grads_matrices


class Linformer(ShorteningAttention):
    """Shortens m keys and values to r by a learned m x r matrix, then takes softmax attention over these.

    The matrix belongs to a length, so this kernel takes no other number of keys than it was built for.

    Args:
        spec: The place to fill; the matrix has `spec.keys.count` rows.
        rank: Number of keys that are left, the paper's k.
        share_projection: Whether values are shortened by the keys' matrix (the paper's key-value sharing) or by their
            own.
        dropout: Probability of dropping a weight.

    Raises:
        ValueError: If the rank is not positive or the dropout is no probability below 1.
    """

    accepts_one_kv_head = True
    queries_apart = True

    def __init__(
        self, spec: AttentionSpec, *, rank: int = 64, share_projection: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__(spec)
        check_counts(rank=rank)
        check_rates(dropout=dropout)
        self.dropout = dropout
        self.project_keys = nn.Parameter(torch.empty(spec.keys.count, rank))
        self.project_values = None if share_projection else nn.Parameter(torch.empty(spec.keys.count, rank))
        for matrix in self.parameters():
            nn.init.uniform_(matrix, -(rank**-0.5), rank**-0.5)

    @torch.no_grad()
    def approach_softmax(self) -> None:
        """Makes each key that is left the mean of a run of neighbours; with as many as there are tokens it is exact."""
        keys, rank = self.project_keys.shape
        run_of_key = torch.arange(keys) * rank // keys
        runs = functional.one_hot(run_of_key, rank)
        for matrix in self.parameters():
            matrix.copy_(runs / runs.sum(dim=0).clamp(min=1))

    def shorten(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Maps keys (... m c) and values (... m c), or what they are made of, to (... r c); equals stay one tensor.

        Raises:
            ValueError: If the number of keys is not the one that it was built for.
        """
        self.check_keys(k)
        short_k = mixed(self.project_keys, k)
        if self.project_values is None and v is k:
            return short_k, short_k
        return short_k, mixed(self.project_keys if self.project_values is None else self.project_values, v)

    def from_tokens(self, x: Tensor, weight: Tensor, sizes: Sequence[int], count: int | None) -> Tensor:
        """Maps tokens (b m c) to what the first of them ask for (b h count e), in the order that is least work.

        Raises:
            ValueError: If the number of tokens is not the one that it was built for.
        """
        self.check_keys(x)
        wide = x.dtype == widen(x).dtype and not torch.is_autocast_enabled(x.device.type)
        drops = self.training and self.dropout > 0
        fewer_rows = count is not None and 2 * self.spec.heads * count < self.project_keys.shape[1]
        # Fused attention, unlike this, rounds no logits to half precision, and drops weights.
        if fewer_rows and wide and not drops:
            return self.for_few(x, x[:, :count], weight.split(sizes))
        own_values = self.project_values is not None
        # A compiler joins gradients itself, and under autocast the products' dtype is not the tokens'.
        if count is not None or torch.compiler.is_compiling() or not wide or (own_values and len(sizes) == 2):
            return super().from_tokens(x, weight, sizes, count)
        q, *rest = Project.apply(x, weight, sizes[0], *self.parameters())
        k, *v = rest if own_values else rest[0].split(sizes[1:], dim=-1)
        return self.attend_side_by_side(q, k, v[0] if v else k)

    def for_few(self, x: Tensor, few: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Does the same for few (b count c), where what their heads ask has fewer rows than what is shortened."""
        of_q, of_k, *of_v = (weight.unflatten(0, (-1, self.spec.head_dim)) for weight in weights)
        q = linear(few, weights[0]).unflatten(-1, of_q.shape[:2])
        # One head of keys serves all queries.
        of_k, out = (part.expand(len(of_q), -1, -1) for part in (of_k, of_v[0] if of_v else of_k))
        asked = torch.einsum("bthd,hdc->bhtc", q * q.shape[-1] ** -0.5, of_k).flatten(1, 2)
        matrices = (self.project_keys, self.project_keys if self.project_values is None else self.project_values)
        found = find(x, asked, *matrices)[-1] if torch.compiler.is_compiling() else Find.apply(x, asked, *matrices)
        return torch.einsum("bhtc,hdc->bhtd", found.unflatten(1, (len(of_q), -1)), out)

    def check_keys(self, k: Tensor) -> None:
        """Refuses (... m c) with another m than that of the projection."""
        if k.shape[-2] != self.spec.keys.count:
            raise ValueError(
                f"Linformer was built for {self.spec.keys}, got {k.shape[-2]}: its projection has no other length"
            )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps (b h n d) and shortened (b h r d), (b h r e) to (b h n e); keys and values may have one head."""
        if k.shape[1] != q.shape[1]:
            k, v = (short.expand(-1, q.shape[1], -1, -1) for short in (k, v))
        dropout = self.dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)

    def take_from(self, other: "Linformer") -> None:
        """Takes the projections of one that was built for other keys, interpolated."""
        for ours, theirs in zip(self.parameters(), other.parameters(), strict=True):
            ours.copy_(resample_sum(theirs, other.spec.keys, self.spec.keys))

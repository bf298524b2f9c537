"""Linformer: softmax attention over a learned, shorter list of keys.

Source: Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768, equation 7.
Cost per head: O((n + m) r (d + e)) time and O(n + r (d + e)) memory; r is the paper's k (k means keys here).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vix.attention.base import AttentionSpec, ShorteningAttention
from vix.layers import check_counts, check_rates, map_rows, weight_gradient
from vix.resample import resample_sum


def mixed(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiplies the transpose of a matrix (m r) and each (m c) of (... m c)."""
    # For three axes torch.matmul would copy all of x, transposed, and keep that.
    return torch.bmm(matrix.mT.expand(x.shape[0], -1, -1), x) if x.ndim == 3 else matrix.mT @ x


class MapAndMix(torch.autograd.Function):
    """Maps each token and mixes all of them, so that both gradients join within a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, count: int | None, *matrices: Tensor) -> tuple[Tensor, ...]:
        """Maps the first of (b m c), by weights (c' c), to (b count c') and all, by each (m r), to (b r c)."""
        ctx.save_for_backward(x, weight, *matrices)
        return map_rows(x[:, :count], weight), *(mixed(matrix, x) for matrix in matrices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *grads_mixed: Tensor) -> tuple[Tensor | None, ...]:
        """Maps the gradients of what came out to those of the tokens, the weights and the matrices."""
        x, weight, *matrices = ctx.saved_tensors
        of_x, of_weight, _, *of_matrices = ctx.needs_input_grad
        first, grad_x = x[:, : grad.shape[1]], None
        if of_x:
            grad_x = map_rows(grad, weight.mT)
            if grad_x.shape != x.shape:
                grad_x = functional.pad(grad_x, (0, 0, 0, x.shape[1] - grad_x.shape[1]))
            for matrix, grad_mixed in zip(matrices, grads_mixed, strict=True):
                # In place, which a gradient from outside could not be.
                grad_x.baddbmm_(matrix.expand(len(x), -1, -1), grad_mixed)
        return (
            grad_x,
            weight_gradient(grad.flatten(0, 1), first.flatten(0, 1)) if of_weight else None,
            None,
            *(
                torch.addbmm(matrix, x, grad_mixed.mT, beta=0) if asked else None
                for asked, matrix, grad_mixed in zip(of_matrices, matrices, grads_mixed, strict=True)
            ),
        )


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

    def map_and_shorten(self, x: Tensor, weight: Tensor, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Maps the first of tokens (b m c), by weights (c' c), to (b count c') and shortens all to two (b r c).

        Raises:
            ValueError: If the number of tokens is not the one that it was built for.
        """
        # A compiler joins gradients itself, and under autocast the products' dtype is not the tokens'.
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return super().map_and_shorten(x, weight, count)
        self.check_keys(x)
        matrices = [self.project_keys] if self.project_values is None else [self.project_keys, self.project_values]
        mapped, *short = MapAndMix.apply(x, weight, count, *matrices)
        return mapped, short[0], short[-1]

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

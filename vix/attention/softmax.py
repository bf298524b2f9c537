"""Softmax attention, exact and quadratic: the baseline of every comparison.

Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, equation 1.
Cost per head: O(n m (d + e)) time; memory O(n + m) fused, O(n m) with explicit matrices.
"""

from torch import Tensor
from torch.nn import functional

from vix.attention.base import Attention, AttentionSpec
from vix.attention.biased import BiasedAttention, suits_runs
from vix.layers import check_rates, full_precision


@full_precision
def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the weights (b h n m) of the keys for each query; half-precision logits overflow where these do not."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    return (logits if bias is None else logits + bias).softmax(dim=-1)


class SoftmaxAttention(Attention):
    """Takes for each query the mean of all values, weighted by softmax(q k^T / sqrt(d)).

    Args:
        spec: The place to fill.
        fused: Whether a fused kernel computes it, torch's or, for a large bias on CPUs, `BiasedAttention`; off, the
            n x m matrices are written out, as most older code does.
        dropout: Probability of dropping a weight.

    Raises:
        ValueError: If the dropout is no probability below 1.
    """

    accepts_bias = True
    queries_apart = True

    def __init__(self, spec: AttentionSpec, *, fused: bool = True, dropout: float = 0.0) -> None:
        super().__init__(spec)
        check_rates(dropout=dropout)
        self.fused = fused
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps queries, keys and values to (b h n e); `bias` (h n m) is added to the logits."""
        dropout = self.dropout if self.training else 0.0
        if bias is not None:
            bias = bias.to(q.dtype)
        if self.fused and bias is not None and not dropout and suits_runs(q, bias):
            return BiasedAttention.apply(q, k, v, bias)
        if self.fused:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return functional.dropout(attention_weights(q, k, bias), dropout) @ v

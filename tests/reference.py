"""Naive formulas of every kernel and mixer, written from the papers: slow, plain, and meant for float64.

Nothing here is shared with `vix`: a mistake would have to be made twice. A kernel of your own becomes part of
`test_contract.py` by its line in `vix.KERNELS`; add its formula to `FORMULAS` and its values and gradients are compared
as well.

Shapes: b batch, h heads, n queries, m keys, d key width, e value width, r rank or features, l landmarks.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vix import Attention, Linformer, NystromAttention, Performer, SoftmaxAttention

GELU_WIDTH = math.sqrt(2)


def row_softmax(logits: Tensor) -> Tensor:
    """Softmax along the last axis, shifted by the maximum."""
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


def softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Vaswani et al., arXiv:1706.03762, equation 1: softmax(q k^T / sqrt(d) + bias) v."""
    return row_softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias) @ v


def linformer(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Wang et al., arXiv:2006.04768, equation 7: softmax(q (E k)^T / sqrt(d)) F v, with E, F given transposed (m r)."""
    short_k = torch.einsum("mr,bhmd->bhrd", keys, k)
    short_v = torch.einsum("mr,bhme->bhre", values, v)
    return softmax(q, short_k, short_v)


def performer(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float) -> Tensor:
    """Choromanski et al., arXiv:2009.14794, equation 5 with lemma 1, of shortened q and k, and `eps` on the features.

    phi(x) = exp(W x - |x|^2 / 2 - M) + eps of x / d^(1/4); M is the maximum of the whole exponent, per query token, and
    per image and head for keys. Both are centred; what that takes from a product of q and k stands with the key. Each
    width is scaled so that queries and keys have the same variance, their mean, where one in a million is added first.
    """
    d = q.shape[-1]
    mean = q.sum(-2, keepdim=True) / q.shape[-2]
    q, k = q - mean, k - k.sum(-2, keepdim=True) / k.shape[-2]
    of_q, of_k = ((x * x).sum(-2, keepdim=True) / x.shape[-2] + 1e-6 for x in (q, k))
    ratio = torch.sqrt(torch.sqrt(of_k / of_q)) / d**0.25
    q, mean, k = q * ratio, mean * ratio, k / (ratio * math.sqrt(d))

    def exponent(x: Tensor) -> Tensor:
        return torch.einsum("rd,bhnd->bhnr", projection, x) - (x * x).sum(-1, keepdim=True) / 2

    of_q, of_k = exponent(q), exponent(k) + (k * mean).sum(-1, keepdim=True)
    phi_q = torch.exp(of_q - of_q.amax(-1, keepdim=True)) + eps
    phi_k = torch.exp(of_k - of_k.amax((-2, -1), keepdim=True)) + eps
    weights = phi_q @ phi_k.transpose(-1, -2)
    return weights / weights.sum(-1, keepdim=True) @ v


def performer_as_published(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float = 1e-4) -> Tensor:
    """The published rule: M is the maximum before the norm term, for keys that of the whole batch."""
    d, r = q.shape[-1], projection.shape[0]
    q, k = q / d**0.25, k / d**0.25
    of_q = torch.einsum("rd,bhnd->bhnr", projection, q)
    of_k = torch.einsum("rd,bhnd->bhnr", projection, k)
    q_norm, k_norm = (q * q).sum(-1, keepdim=True) / 2, (k * k).sum(-1, keepdim=True) / 2
    phi_q = (torch.exp(of_q - q_norm - of_q.amax(-1, keepdim=True)) + eps) / math.sqrt(r)
    phi_k = (torch.exp(of_k - k_norm - of_k.max()) + eps) / math.sqrt(r)
    weights = phi_q @ phi_k.transpose(-1, -2)
    return weights / weights.sum(-1, keepdim=True) @ v


def landmark_means(x: Tensor, landmarks: int) -> Tensor:
    """Means over runs of neighbouring tokens: the first runs get the tokens that are left over, one each."""
    length, left_over = divmod(x.shape[-2], landmarks)
    means, start = [], 0
    for landmark in range(landmarks):
        stop = start + length + (1 if landmark < left_over else 0)
        means.append(x[..., start:stop, :].sum(-2) / (stop - start))
        start = stop
    assert start == x.shape[-2]
    return torch.stack(means, dim=-2)


def iterated_inverse(a: Tensor, steps: int, column_sum: Tensor) -> Tensor:
    """Xiong et al., arXiv:2102.03902, equation 13, from A^T / (largest row sum x largest column sum); rows sum to 1."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype)
    z = a.transpose(-1, -2) / column_sum
    for _ in range(steps):
        az = a @ z
        z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    return z


def token_convolution(v: Tensor, filters: Tensor) -> Tensor:
    """Correlates the values of each head (b h n e) with its filter (h taps) along the tokens, zeros outside."""
    n, half = v.shape[-2], filters.shape[-1] // 2
    out = []
    for token in range(n):
        reach = range(max(0, token - half), min(n, token + half + 1))
        out.append(sum(filters[:, other - token + half, None] * v[..., other, :] for other in reach))
    return torch.stack(out, dim=-2)


def nystrom(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    landmarks: int,
    steps: int | None,
    filters: Tensor | None,
    batch_start: bool = False,
) -> Tensor:
    """Xiong et al., arXiv:2102.03902, equation 14, plus a convolution of the values; steps=None inverts exactly."""
    landmarks = min(landmarks, q.shape[-2], k.shape[-2])
    scale = 1 / math.sqrt(q.shape[-1])
    q_landmarks, k_landmarks = landmark_means(q, landmarks), landmark_means(k, landmarks)
    first = row_softmax(scale * q @ k_landmarks.transpose(-1, -2))
    middle = row_softmax(scale * q_landmarks @ k_landmarks.transpose(-1, -2))
    last = row_softmax(scale * q_landmarks @ k.transpose(-1, -2))
    columns = middle.sum(-2)
    largest = columns.max() if batch_start else columns.amax(-1)[..., None, None]
    inverse = torch.linalg.pinv(middle) if steps is None else iterated_inverse(middle, steps, largest)
    out = first @ inverse @ (last @ v)
    return out if filters is None else out + token_convolution(v, filters)


def nystrom_as_published(
    q: Tensor, k: Tensor, v: Tensor, landmarks: int, steps: int | None, filters: Tensor | None
) -> Tensor:
    """The published rule: zeros in front up to a multiple of the landmarks, and one start for the whole batch."""
    n = q.shape[-2]
    zeros = -n % landmarks
    q, k, v = (torch.cat([x.new_zeros(*x.shape[:-2], zeros, x.shape[-1]), x], dim=-2) for x in (q, k, v))
    return nystrom(q, k, v, landmarks, steps, filters, batch_start=True)[..., zeros:, :]


def of_softmax(kernel: SoftmaxAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return softmax(q, k, v)


def of_linformer(kernel: Linformer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    values = kernel.project_keys if kernel.project_values is None else kernel.project_values
    return linformer(q, k, v, kernel.project_keys, values)


def of_performer(kernel: Performer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if kernel.as_published:
        return performer_as_published(q, k, v, kernel.projection)
    return performer(q, k, v, kernel.projection, eps=1e-5)


def of_nystrom(kernel: NystromAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    filters = None if kernel.residual is None else kernel.residual.weight[:, 0, :, 0]
    formula = nystrom_as_published if kernel.as_published else nystrom
    return formula(q, k, v, kernel.landmarks(q.shape[-2], k.shape[-2]), kernel.iterations, filters)


FORMULAS: dict[type[Attention], Callable[..., Tensor]] = {
    SoftmaxAttention: of_softmax,
    Linformer: of_linformer,
    Performer: of_performer,
    NystromAttention: of_nystrom,
}
"""The formula of a kernel, from the kernel (for its options and parameters) and q, k, v."""


def fourier(x: Tensor) -> Tensor:
    """Lee-Thorp et al., arXiv:2105.03824, equations 2 and 3: Re(W_n x W_c) with W_jk = exp(-2 pi i j k / size)."""

    def angles(size: int) -> Tensor:
        index = torch.arange(size, dtype=torch.float64)
        # Whole turns are taken off first, so that no cosine is of a large number.
        return 2 * math.pi * (index.outer(index) % size) / size

    over_tokens, over_channels = angles(x.shape[-2]), angles(x.shape[-1])
    return over_tokens.cos() @ x @ over_channels.cos() - over_tokens.sin() @ x @ over_channels.sin()


def gelu(x: Tensor) -> Tensor:
    """Hendrycks and Gimpel, arXiv:1606.08415, section 2: x times the normal distribution function."""
    return x * (1 + torch.erf(x / GELU_WIDTH)) / 2


def mlp_mixing(x: Tensor, expand: Tensor, expand_bias: Tensor, contract: Tensor, contract_bias: Tensor) -> Tensor:
    """Tolstikhin et al., arXiv:2105.01601, equation 1, left half, without norm and residual: W_2 gelu(W_1 x)."""
    hidden = gelu(torch.einsum("tn,bnc->btc", expand, x) + expand_bias[:, None])
    return torch.einsum("nt,btc->bnc", contract, hidden) + contract_bias[:, None]


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Turns each pair (2i, 2i + 1) of the last axis of (... n d) by its angle (n d/2), pair by pair."""
    out = torch.empty_like(x)
    for pair in range(x.shape[-1] // 2):
        cosine, sine = angles[:, pair].cos(), angles[:, pair].sin()
        first, second = x[..., 2 * pair], x[..., 2 * pair + 1]
        out[..., 2 * pair] = first * cosine - second * sine
        out[..., 2 * pair + 1] = second * cosine + first * sine
    return out


def rope_angles(count: int, d: int) -> Tensor:
    """Su et al., arXiv:2104.09864, equation 15: the token at position p turns pair i by p 10000^(-2 i / d)."""
    return torch.tensor([[p * 10000 ** (-2 * i / d) for i in range(d // 2)] for p in range(count)], dtype=torch.float64)


def rope_axial_angles(rows: int, columns: int, prefix: int, d: int) -> Tensor:
    """Heo et al., arXiv:2403.13298, equations 10 and 11: y turns the first half by y 100^(-i / (d/4)), x the second."""
    angles = [[0.0] * (d // 2) for _ in range(prefix)]
    for y in range(rows):
        angles += [[axis * 100 ** (-i / (d / 4)) for axis in (y, x) for i in range(d // 4)] for x in range(columns)]
    return torch.tensor(angles, dtype=torch.float64)


def self_attention(x: Tensor, heads: int, project: Tensor, output: Tensor, output_bias: Tensor) -> Tensor:
    """Multi-head softmax attention, head by head: rows of `project` are queries, keys, values, each head by head."""
    width = project.shape[0] // (3 * heads)
    values = []
    for head in range(heads):
        q, k, v = (
            x @ project[(part * heads + head) * width : (part * heads + head + 1) * width].T for part in range(3)
        )
        values.append(softmax(q, k, v))
    return torch.cat(values, dim=-1) @ output.T + output_bias

"""The contract of an attention kernel: queries, keys and values in, one value per query out.

Shapes: b batch, h heads, n query tokens, m key tokens, d key width per head, e value width per head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange
from torch import Tensor, nn

from vix.layers import linear
from vix.tokens import Tokens


@dataclass(frozen=True)
class AttentionSpec:
    """The place that a kernel fills.

    Args:
        heads: Number of heads.
        head_dim: Width of a query and of a key, per head.
        queries: The tokens that ask.
        keys: The tokens that answer; others than `queries` where a body strides its keys or shrinks its queries.
    """

    heads: int
    head_dim: int
    queries: Tokens
    keys: Tokens


class Attention(nn.Module, ABC):
    """A kernel (b h n d), (b h m d), (b h m e) -> (b h n e); it owns no projection and knows no body.

    A kernel scales its own logits. It must give the same output for an image whatever else is in the batch.

    Args:
        spec: The place to fill.
    """

    accepts_bias: ClassVar[bool] = False
    """Whether `forward` takes a fourth tensor (h n m), added to the logits."""
    accepts_one_kv_head: ClassVar[bool] = False
    """Whether keys and values may come with a single head that serves all queries; else the caller repeats it."""
    queries_apart: bool = False
    """Whether a query's output depends on no other query, so that a caller who wants some may give some."""
    options_for_other_keys: ClassVar[dict[str, object]] = {}
    """The options that a named system sets where its queries and keys are different tokens."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec

    def approach_softmax(self) -> None:
        """Sets what the kernel learns so that it starts as near to softmax attention as it can; by default nothing.

        `vix.swap_attention` calls it, where queries, keys and values are trained already.
        """

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps queries (b h n d), keys (b h m d) and values (b h m e) to (b h n e)."""

    def first(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        """Maps the same to the outputs (b h count e) of the first queries; a kernel that can do less for them does."""
        return self(q, k, v)[..., :count, :]


class ShorteningAttention(Attention):
    """A kernel that first mixes the keys, and the values, into fewer by matrices along the tokens.

    What keys and values are made of can be shortened instead of them: a caller may give `attend` linear maps of it.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps (b h n d), (b h m d), (b h m e) to (b h n e)."""
        return self.attend(q, *self.shorten(k, v))

    @abstractmethod
    def shorten(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Maps keys (... m c) and values (... m c), or what they are made of, to (... r c) each."""

    def from_tokens(self, x: Tensor, weight: Tensor, sizes: Sequence[int], count: int | None) -> Tensor:
        """Maps tokens (b m c) to what the first of them ask for (b h count e), in the order that is least work.

        Args:
            x: The tokens.
            weight: Weights (p c) whose rows make the queries, the keys and the values of all heads.
            sizes: How many rows each has; without any for the values, they are the keys.
            count: How many of the tokens ask; None for all.
        """
        of_q, of_k, *of_v = weight.split(sizes)
        short_k, short_v = self.shorten(x, x)
        return self.attend_side_by_side(
            linear(x[:, :count], of_q), linear(short_k, of_k), linear(short_v, of_v[0] if of_v else of_k)
        )

    def attend_side_by_side(self, *parts: Tensor) -> Tensor:
        """Maps queries (b n p) and shortened keys and values (b r p), heads beside each other, to (b h n e)."""
        return self.attend(*(rearrange(part, "b n (h d) -> b h n d", d=self.spec.head_dim) for part in parts))

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Maps (b h n d) and shortened (b h r d), (b h r e) to (b h n e)."""


AttentionFactory = Callable[[AttentionSpec], Attention]
"""A kernel's class, or anything else that makes one for a place: `Performer`, `partial(Performer, features=128)`."""

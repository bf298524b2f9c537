"""The contract of a mixer: tokens in, tokens out, knowing where they sit."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from vix.tokens import Tokens


class Mixer(nn.Module, ABC):
    """Maps (b n c) to (b n c) and lets the tokens of an image see each other."""

    @abstractmethod
    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c); `tokens` says where the n tokens of this forward sit."""

    def first(self, x: Tensor, tokens: Tokens, count: int) -> Tensor:
        """Maps the same to the first tokens (b count c) alone; a mixer that can do less for them does."""
        return self(x, tokens)[:, :count]


MixerFactory = Callable[[int, Tokens], Mixer]
"""Makes a mixer for a width and the tokens that the net is built for."""

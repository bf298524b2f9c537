"""MLP mixing: two linear maps along the tokens, shared by all channels.

Source: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, arXiv:2105.01601, equation 1.
Cost: O(n t c) time for a hidden width t; 2 n t parameters, which belong to one number of tokens.
"""

from torch import Tensor

from vix.layers import FeedForward, check_counts
from vix.mixers.base import Mixer
from vix.resample import resample, resample_sum
from vix.tokens import Tokens


class MLPMixing(Mixer):
    """Applies a feed-forward network to the tokens of each channel.

    Args:
        dim: Width of a token; any width will do.
        tokens: The tokens that it is built for; it takes no other number.
        hidden: Width of the network between its linear maps, the paper's D_S; left out, the number of tokens, as
            published.
        dropout: Probability of dropping a value after either linear map.

    Raises:
        ValueError: If the hidden width is not positive.
    """

    def __init__(self, dim: int, tokens: Tokens, *, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = tokens.count if hidden is None else hidden
        check_counts(hidden=hidden)
        self.tokens = tokens
        self.network = FeedForward(tokens.count, hidden, dropout=dropout)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c).

        Raises:
            ValueError: If the tokens are not those that it was built for.
        """
        if tokens.differs(self.tokens):
            raise ValueError(f"MLP mixing was built for {self.tokens}, got {tokens}: its weights have no other length")
        mixed: Tensor = self.network(x.mT)
        return mixed.mT

    def take_from(self, other: "MLPMixing") -> None:
        """Takes the network of one that was built for other tokens, interpolated on both sides."""
        ours, theirs, old, new = self.network, other.network, other.tokens, self.tokens
        ours.expand.weight.copy_(resample_sum(theirs.expand.weight.mT, old, new).mT)
        ours.expand.bias.copy_(theirs.expand.bias)
        ours.contract.weight.copy_(resample(theirs.contract.weight, old, new))
        ours.contract.bias.copy_(resample(theirs.contract.bias[:, None], old, new)[:, 0])

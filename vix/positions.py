"""Where a token stands: a learned table, or rotations of queries and keys.

Shapes: b batch, h heads, n tokens, c width, d width of a head.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from vix.layers import full_precision
from vix.resample import places, places_in_sequence, resample
from vix.tokens import Tokens

Position = Literal["learned", "rope", "rope_axial", "none"]
"""How a net knows where its tokens stand."""


class LearnedPosition(nn.Module):
    """Adds a learned vector to each token.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, equation 1. Starts from
        N(0, 1) as the published code does, where the paper's code starts from N(0, 0.02^2).

    Args:
        tokens: The tokens that the table serves.
        dim: Width of a token.
    """

    undecayed = ("table",)

    def __init__(self, tokens: Tokens, dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.table = nn.Parameter(torch.randn(1, tokens.count, dim))

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c).

        Raises:
            ValueError: If the tokens are not those of the table.
        """
        if tokens.differs(self.tokens):
            raise ValueError(
                f"learned positions were built for {self.tokens}, got {tokens}: "
                "build the net for this size, or use position='rope'"
            )
        return x + self.table

    def take_from(self, other: "LearnedPosition") -> None:
        """Takes the table of one that was built for other tokens, interpolated."""
        self.table.copy_(resample(other.table[0], other.tokens, self.tokens)[None])


@full_precision
def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns neighbouring pairs of (b h n d) by angles whose cosines and sines are (n d/2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


class RotaryPosition(nn.Module):
    """Turns pairs of a query or key by angles that grow with its position, so that scores depend on displacement only.

    Source: Su et al., "RoFormer", 2021, arXiv:2104.09864, equation 34; on two axes: Heo et al., "Rotary Position
        Embedding for Vision Transformer", ECCV 2024, arXiv:2403.13298, equations 10 and 11.

    Args:
        tokens: The tokens that it is prepared for; others are served too.
        head_dim: Width of a head.
        axial: Whether y turns the first half of a head and x the second, and class tokens stay unturned. Otherwise the
            position is the index in the sequence, as published: class token 0, the pixels in raster order after it.
        grid: Rows and columns of the tokens that the net was trained with, onto which all tokens are squeezed; left
            out, each stands at its own place.
        base: Ratio of the slowest to the fastest wavelength; left out, 10000 (RoFormer) or 100 on two axes (Heo et
            al.).

    Raises:
        ValueError: If the head's width is not a multiple of 2, or of 4 on two axes.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        tokens: Tokens,
        head_dim: int,
        *,
        axial: bool = False,
        grid: tuple[int, int] | None = None,
        base: float | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        if head_dim % (4 if axial else 2):
            name, multiple = ("rope_axial", 4) if axial else ("rope", 2)
            raise ValueError(
                f"position={name!r} turns pairs, so dim_head must be a multiple of {multiple}, got {head_dim}"
            )
        self.tokens, self.head_dim, self.axial = tokens, head_dim, axial
        self.base = base or (100.0 if axial else 10000.0)
        angles = self.angles(tokens)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def angles(self, tokens: Tokens) -> Tensor:
        """Returns the angles (n d/2) of a sequence, in radians and float64."""
        turning = self.head_dim // 2 if self.axial else self.head_dim
        steps = torch.arange(0, turning, 2, dtype=torch.float64)
        frequencies = self.base ** (-steps / turning)
        if not self.axial:
            return places_in_sequence(tokens, self.grid).outer(frequencies)
        rows, columns = tokens.grid
        y, x = (
            places(side, trained).outer(frequencies)
            for side, trained in zip(tokens.grid, self.grid or tokens.grid, strict=True)
        )
        grid = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], dim=-1).flatten(0, 1)
        return torch.cat([grid.new_zeros(tokens.prefix, grid.shape[-1]), grid])

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Turns queries or keys (b h n d) of the given tokens."""
        cosine, sine = self.cosine, self.sine
        if tokens.differs(self.tokens):
            angles = self.angles(tokens)
            cosine, sine = angles.cos().to(cosine), angles.sin().to(sine)
        return rotate(x, cosine, sine)

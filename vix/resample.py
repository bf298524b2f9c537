"""What belongs to places, carried over to another grid of places: a trained net at another resolution.

Shapes: n tokens, c values a token, y x the grid.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vix.tokens import Tokens


def weights_of(old: int, new: int) -> Tensor:
    """Returns the matrix (new old), in float64, that interpolates a row of values: bicubic, antialiased."""
    # One image whose columns are the impulses: as channels of images one wide torch 2.15 interpolates them wrongly.
    impulses = torch.eye(old, dtype=torch.float64)[None, None]
    return functional.interpolate(impulses, (new, old), mode="bicubic", antialias=True, align_corners=False)[0, 0]


def _along_both(values: Tensor, down: Tensor, right: Tensor, old: Tokens, new: Tokens) -> Tensor:
    """Multiplies the grid of values (n c) by a matrix along each axis; class tokens keep theirs."""
    if old.prefix != new.prefix:
        raise ValueError(f"{old} and {new} have another number of class tokens")
    if old.grid == new.grid:
        return values
    prefix, grid = values.split([old.prefix, old.count - old.prefix])
    grid = rearrange(grid, "(y x) c -> c y x", y=old.grid[0])
    return torch.cat([prefix, rearrange(down.to(grid) @ grid @ right.to(grid).mT, "c y x -> (y x) c")])


def resample(values: Tensor, old: Tokens, new: Tokens) -> Tensor:
    """Maps values of each token (n c) from one grid to another; class tokens keep theirs.

    Raises:
        ValueError: If the grids have another number of class tokens.
    """
    down, right = (weights_of(before, after) for before, after in zip(old.grid, new.grid, strict=True))
    return _along_both(values, down, right, old, new)


def resample_sum(weights: Tensor, old: Tokens, new: Tokens) -> Tensor:
    """Maps weights (n c) of a sum over tokens, so that tokens that `resample` made give the sum that they gave before.

    With W what interpolates, these are pinv(W)^T times the old ones (FlexiViT has it for patches: Beyer et al., CVPR
    2023, arXiv:2212.08013, section 3.4). To interpolate them too would blur twice what a net has learnt token by token.

    Raises:
        ValueError: If the grids have another number of class tokens.
    """
    down, right = (torch.linalg.pinv(weights_of(*sides)).mT for sides in zip(old.grid, new.grid, strict=True))
    return _along_both(weights, down, right, old, new)


def resample_distances(table: Tensor, old: Tokens, new: Tokens) -> Tensor:
    """Maps one value a distance (h (y x)), in whole tokens, to the distances of another grid, linear between two."""
    values = rearrange(table, "h (y x) -> h y x", y=old.grid[0])
    down, right = (_between(before, after).to(table) for before, after in zip(old.grid, new.grid, strict=True))
    return rearrange(down @ values @ right.mT, "h y x -> h (y x)")


def _between(old: int, new: int) -> Tensor:
    """Returns the matrix (new old) that reads a row of values at every `old / new`-th place, from the first on."""
    places = (torch.arange(new, dtype=torch.float64) * old / new).clamp(max=old - 1)
    return (1 - (places[:, None] - torch.arange(old)).abs()).clamp(min=0)


def places(side: int, trained: int) -> Tensor:
    """Returns where the tokens of a side (n) stand, in float64, in units of the tokens that it was trained with."""
    return (torch.arange(side, dtype=torch.float64) + 0.5) * (trained / side) - 0.5


def places_in_sequence(tokens: Tokens, trained: tuple[int, int] | None) -> Tensor:
    """Returns where tokens stand in the sequence (n), in float64.

    Args:
        tokens: The tokens.
        trained: Rows and columns of the grid whose sequence is meant; None for their own.
    """
    if trained is None or trained == tokens.grid:
        return torch.arange(tokens.count, dtype=torch.float64)
    rows, columns = (places(side, before) for side, before in zip(tokens.grid, trained, strict=True))
    grid = (rows[:, None] * trained[1] + columns).flatten() + tokens.prefix
    return torch.cat([torch.arange(tokens.prefix, dtype=torch.float64), grid])

"""Where the tokens of an image sit: a grid of patches, and class tokens in front of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tokens:
    """Describes a sequence of tokens: `prefix` class tokens, then the grid in raster order (row by row).

    Args:
        grid: Height and width of the grid, in tokens.
        prefix: Number of class tokens in front of the grid.
    """

    grid: tuple[int, int]
    prefix: int = 0

    @property
    def count(self) -> int:
        """Length of the sequence, class tokens included."""
        return self.prefix + self.grid[0] * self.grid[1]

    def differs(self, other: "Tokens") -> bool:
        """Whether the other tokens sit elsewhere; number by number, since a compiler's sizes may be symbols."""
        return self.prefix != other.prefix or self.grid[0] != other.grid[0] or self.grid[1] != other.grid[1]

    def __str__(self) -> str:
        rows, columns = self.grid
        return f"{self.count} tokens ({rows}x{columns}{f' + {self.prefix}' if self.prefix else ''})"


def pair(size: int | tuple[int, int] | list[int], name: str) -> tuple[int, int]:
    """Reads a side or a (height, width) pair.

    Args:
        size: One number for a square, or two.
        name: What the caller calls it; used in the error.

    Raises:
        ValueError: If it is not one or two positive whole numbers.
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{name} must be a positive whole number or a (height, width) pair of them, got {size!r}")
    return sides[0], sides[1]

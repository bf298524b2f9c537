"""The errors that end in a few words instead of a traceback, and helps for wording them."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(Exception):
    """Something the user gave is wrong; the message has one to five lines and says what would do."""


class StorageError(Exception):
    """A file of the run cannot be written, for want of room or permission; the message names it."""


class TrainingError(Exception):
    """Training cannot go on: numbers went wrong, memory is exhausted, or a process was lost."""


class Stopped(BaseException):
    """A signal asked for an end; like KeyboardInterrupt it passes by whoever catches mere errors.

    Args:
        number: The signal's.
        saved: Whether the state was saved at the last step.
    """

    def __init__(self, number: int, *, saved: bool) -> None:
        super().__init__(number)
        self.number = number
        self.saved = saved


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, else the error's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: str, candidates: Iterable[str], *, show: int = 12) -> str:
    """Words the way from a wrong name to a right one.

    Args:
        word: What was given.
        candidates: The names that would have done.
        show: Up to how many names are listed where none is close.

    Returns:
        `; did you mean x?`, or `; there are: x, y`, or nothing where the list would be long.
    """
    names = sorted(set(candidates))
    folded = {name.lower(): name for name in names}
    close = [folded[match] for match in get_close_matches(word.lower(), folded, n=1, cutoff=0.6)]
    if close:
        return f"; did you mean {close[0]}?"
    if 0 < len(names) <= show:
        return f"; there are: {', '.join(names)}"
    return ""

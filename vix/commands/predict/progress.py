"""A progress bar on a terminal, and nothing elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn


@contextmanager
def bar(total: int) -> Iterator[Callable[[int], None]]:
    """Draws a bar on standard error, and yields what moves it on.

    Args:
        total: How many images there are.
    """
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("predict", total=total)
        yield lambda images: progress.advance(task, images)

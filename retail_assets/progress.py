"""A progress bar for what takes long, on standard error.

Here: the bar that commands show. Not here: what else they print (commands/tables.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task
from rich.text import Text


class _Speed(ProgressColumn):
    """How many are done a second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} a second")


@contextmanager
def progress_bar(label: str, total: int, *, speed: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar that is to be told how much was done since it was told last.

    With ``speed`` it says how many are done a second. Nothing is shown where standard error is no
    terminal.
    """
    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        *([_Speed()] if speed else []),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)

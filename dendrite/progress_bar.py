"""The bar that shows how many problems of a job have ended, for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class ProgressBar:
    """A bar, the count, totals in words, and the time since `start`. Nothing of it stays after `stop`."""

    def __init__(self, console: Console, problems: int, done: int = 0) -> None:
        """Make a bar of so many problems, `done` of which had ended before."""
        self._progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[totals]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("problems", total=problems, completed=done, totals="")

    def start(self) -> None:
        """Begin to show."""
        self._progress.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    def show(self, done: int, totals: str) -> None:
        """Show how many problems have ended, and the totals, which may be in `rich`'s markup."""
        self._progress.update(self._task, completed=done, totals=totals)

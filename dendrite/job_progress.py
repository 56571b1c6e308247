"""How far a job is: from its files, for the process that runs it and for any other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from dendrite.job_file import Contents
from dendrite.job_lock import Run
from dendrite.jobs import Outcome
from dendrite.progress_bar import ProgressBar


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a job has come to so far.

    `tokens` counts those of the searches that have ended. `seconds` is the time that the job has run, in all its runs,
    and `eta_s` the time to its end at the pace of this run; None while it doesn't run, and before the first problem
    of the run has ended.
    """

    problems: int
    done: int
    solved: int
    failed: int
    tokens: int
    tokens_per_second: float
    seconds: float
    running: bool
    eta_s: float | None
    first_error: str | None

    @classmethod
    def of(cls, contents: Contents, problems: int, run: Run | None, *, running: bool) -> JobStatus:
        """The status by the file of results and, while it runs, by what the run has told of itself."""
        seconds = run.seconds if running and run is not None else contents.elapsed
        return cls(
            problems=problems,
            done=len(contents.entries),
            solved=contents.solved,
            failed=contents.failed,
            tokens=contents.tokens,
            tokens_per_second=contents.tokens / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            running=running,
            eta_s=run.eta(contents.lines) if running and run is not None else None,
            first_error=contents.first_error,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def table(self, title: str) -> Table:
        """The status for people."""
        table = Table(title=title, show_header=False)
        table.add_row("done", f"{self.done} of {self.problems}")
        table.add_row("solved", f"{self.solved} ({self.solved / max(1, self.done):.0%})")
        table.add_row("failed", str(self.failed))
        table.add_row("tokens", f"{self.tokens:,} ({self.tokens / max(1, self.done):,.0f} a problem)")
        table.add_row("tokens/s", f"{self.tokens_per_second:,.0f}")
        table.add_row("time", _time(self.seconds))
        if self.running:
            table.add_row("ETA", _time(self.eta_s))
        return table


Show: TypeAlias = Callable[[Outcome, JobStatus], None]


def progress(console: Console, problems: int, done: int, *, silent: bool) -> AbstractContextManager[Show]:
    """What shows a problem that has ended: a live bar on a terminal, else lines, or nothing if `silent`."""
    if silent:
        return nullcontext(lambda outcome, status: None)
    if console.is_terminal:
        return _Bar(console, problems, done)
    return nullcontext(lambda outcome, status: _print_line(console, outcome, status))


class _Bar(AbstractContextManager[Show]):
    def __init__(self, console: Console, problems: int, done: int) -> None:
        self._bar = ProgressBar(console, problems, done)

    def __enter__(self) -> Show:
        self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, outcome: Outcome, status: JobStatus) -> None:
        failed = f"  [red]{status.failed} failed[/]" if status.failed else ""
        totals = f"[green]{status.solved} solved[/]{failed}  {status.tokens_per_second:,.0f} tokens/s"
        self._bar.show(status.done, f"{totals}  ETA {_time(status.eta_s)}")


def _print_line(console: Console, outcome: Outcome, status: JobStatus) -> None:
    result = outcome.result
    if result is None:
        verdict = f"failed: {outcome.error}"
    else:
        judged = "solved" if result.solved else f"not solved ({result.stop_reason})"
        verdict = f"{judged}, {result.tokens} tokens, {result.seconds:.1f} s"
    line = f"[{status.done}/{status.problems}] {outcome.task.name}: {verdict}; ETA {_time(status.eta_s)}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))

"""How a job shows itself while it runs: a live display, plain lines, or nothing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.table import Table

from dendrite.jobs import Outcome
from dendrite.progress_bar import ProgressBar
from dendrite.search.backend import BackendStats


@dataclass(slots=True)
class Tally:
    """What a job has come to so far. `tokens` counts generated tokens, of searches under way too."""

    problems: int
    began: float
    done: int = 0
    solved: int = 0
    errors: int = 0
    first_error: str = ""
    tokens: int = 0
    forks: int = 0
    kv_shared: float = 0.0

    @classmethod
    def begin(cls, problems: int) -> Tally:
        """Start the clock."""
        return cls(problems, time.monotonic())

    @property
    def seconds(self) -> float:
        """Time since the job began."""
        return time.monotonic() - self.began

    def count(self, outcome: Outcome) -> None:
        """Count a problem that has ended."""
        self.done += 1
        if outcome.error is not None:
            self.errors += 1
            self.first_error = self.first_error or str(outcome.error)
        self.solved += outcome.result is not None and outcome.result.solved

    def measure(self, stats: BackendStats) -> None:
        """Take over the backend's totals."""
        self.tokens, self.forks, self.kv_shared = stats.decode_tokens, stats.forks, stats.shared_ratio

    def summary(self) -> Summary:
        """Close the account."""
        seconds = self.seconds
        return Summary(
            problems=self.problems,
            done=self.done,
            solved=self.solved,
            errors=self.errors,
            first_error=self.first_error,
            tokens=self.tokens,
            tokens_per_problem=self.tokens / self.done if self.done else 0.0,
            tokens_per_second=self.tokens / seconds,
            forks=self.forks,
            kv_shared=self.kv_shared,
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job came to. `kv_shared` is the share of context tokens read from an ancestor's pages."""

    problems: int
    done: int
    solved: int
    errors: int
    first_error: str
    tokens: int
    tokens_per_problem: float
    tokens_per_second: float
    forks: int
    kv_shared: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def table(self, title: str) -> Table:
        """The summary for people."""
        table = Table(title=title, show_header=False)
        table.add_row("solved", f"{self.solved} of {self.done} ({self.solved / max(1, self.done):.0%})")
        if self.errors:
            table.add_row("failed", str(self.errors))
        table.add_row("time", f"{self.seconds:.1f} s")
        table.add_row("tokens", f"{self.tokens:,} ({self.tokens_per_problem:,.0f} a problem)")
        table.add_row("tokens/s", f"{self.tokens_per_second:,.0f}")
        table.add_row("forks", f"{self.forks:,}")
        table.add_row("KV shared", f"{self.kv_shared:.0%}")
        return table


class Reporter(Protocol):
    """Shows a job's progress between entering and leaving its context."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        ...

    def ended(self, outcome: Outcome, tally: Tally) -> None:
        """Show that a problem has ended."""
        ...

    def measured(self, tally: Tally) -> None:
        """Show the totals of the moment."""
        ...


class LiveReporter:
    """A progress bar with the totals of the moment, for a terminal."""

    def __init__(self, console: Console, problems: int) -> None:
        self._bar = ProgressBar(console, problems)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def ended(self, outcome: Outcome, tally: Tally) -> None:
        """Advance the bar."""
        self._bar.show(tally.done, _totals(tally))

    def measured(self, tally: Tally) -> None:
        """Refresh the totals."""
        self._bar.show(tally.done, _totals(tally))


class PlainReporter:
    """A line for every problem that ends, for a file or a pipe."""

    def __init__(self, console: Console, problems: int) -> None:
        self._console, self._problems = console, problems

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def ended(self, outcome: Outcome, tally: Tally) -> None:
        """Print the problem's line."""
        line = f"[{tally.done}/{self._problems}] {outcome.task.name}: {_verdict(outcome)}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def measured(self, tally: Tally) -> None:
        """Totals are left to the summary."""


class SilentReporter(PlainReporter):
    """Nothing at all, where the output is for a program."""

    def ended(self, outcome: Outcome, tally: Tally) -> None:
        """Print nothing."""


def _verdict(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.error}"
    result = outcome.result
    if result.solved:
        verdict = "solved" if result.answer is None else f"solved by {result.answer}"
    else:
        reward = f", reward {result.reward:.3g}" if 0.0 < result.reward < 1.0 else ""
        verdict = f"not solved ({result.stop_reason}){reward}"
    return f"{verdict}, {result.tokens} tokens, {result.seconds:.1f} s"


def _totals(tally: Tally) -> str:
    rate = tally.tokens / max(1e-9, tally.seconds)
    return (
        f"[green]{tally.solved} solved[/]  {rate:,.0f} tokens/s  {tally.forks:,} forks  KV shared {tally.kv_shared:.0%}"
    )

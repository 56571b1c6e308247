from __future__ import annotations

from io import StringIO

from rich.console import Console

from dendrite.errors import Cancelled
from dendrite.jobs import Outcome
from dendrite.progress import LiveReporter, PlainReporter, Reporter, SilentReporter, Tally
from dendrite.search.backend import BackendStats
from dendrite.search.result import SearchResult
from dendrite.search.tasks.countdown import Countdown

TASK = Countdown((1, 2), 3)
STATS = BackendStats(10, 0, 1_234, 0, 56, 7, 0.5)


def outcome(solved: bool) -> Outcome:
    reason = "solved" if solved else "tokens"
    return Outcome(0, TASK, SearchResult("mcts", TASK.name, 0, solved, 1.0, "", "1+2", 5, 1, 0.25, 2, reason))  # type: ignore[arg-type]


def shown(kind: type[LiveReporter] | type[PlainReporter], *, terminal: bool) -> str:
    text = StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    reporter: Reporter = kind(console, 3)
    tally = Tally.begin(3)
    with reporter:
        for ended in (outcome(True), outcome(False), Outcome(2, TASK, None, Cancelled("no [red]time[/]"))):
            tally.count(ended)
            tally.measure(STATS)
            reporter.ended(ended, tally)
            reporter.measured(tally)
    return text.getvalue()


def test_plain_lines_tell_what_became_of_each_problem() -> None:
    assert shown(PlainReporter, terminal=False).splitlines() == [
        "[1/3] countdown 1 2 = 3: solved by 1+2, 5 tokens, 0.2 s",
        "[2/3] countdown 1 2 = 3: not solved (tokens), 5 tokens, 0.2 s",
        "[3/3] countdown 1 2 = 3: failed: no [red]time[/]",
    ]


def test_the_live_display_shows_totals() -> None:
    text = shown(LiveReporter, terminal=True)
    for part in ("3/3", "1 solved", "tokens/s", "56 forks", "KV shared 50%"):
        assert part in text


def test_silence() -> None:
    assert shown(SilentReporter, terminal=True) == ""


def test_the_summary_counts() -> None:
    tally = Tally.begin(4)
    tally.count(outcome(True))
    tally.count(Outcome(2, TASK, None, Cancelled("x")))
    tally.measure(STATS)
    summary = tally.summary()
    assert (summary.problems, summary.done, summary.solved, summary.errors) == (4, 2, 1, 1)
    assert summary.first_error == "x"
    assert (summary.tokens, summary.tokens_per_problem, summary.forks) == (1_234, 617.0, 56)
    text = StringIO()
    Console(file=text, width=80).print(summary.table("title"))
    assert "1 of 2 (50%)" in text.getvalue()
    assert "failed" in text.getvalue()
    assert summary.to_dict()["kv_shared"] == 0.5

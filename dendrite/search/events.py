"""What a search tells whoever watches it while it runs: see `on_event` of `run_search_async`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class ExpansionDone:
    """An expansion has returned; the totals of the search so far."""

    expansions: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TerminalFound:
    """A path has come to its end. Its reward is None where the search may not see it."""

    text: str
    reward: float | None


SearchEvent: TypeAlias = ExpansionDone | TerminalFound
"""Not to be taken for the event of this name in a trace, which is its first."""

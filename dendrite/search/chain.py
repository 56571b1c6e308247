"""Decoding on to the end of a path: a sample of best-of-n, a greedy answer, a rollout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dendrite.search.flights import Flights, Landing
from dendrite.search.session import Session
from dendrite.search.thought import Thought


@dataclass(slots=True, eq=False)
class Chain:
    """A path without branches below `start`. `path` keys its sampling seeds."""

    start: Thought
    path: tuple[int, ...]
    thoughts: list[Thought] = field(default_factory=list)
    cut: bool = False
    """Whether the model's context was too short for another thought."""

    @property
    def end(self) -> Thought:
        """Its last thought so far."""
        return self.thoughts[-1] if self.thoughts else self.start

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return self.cut or self.end.terminal

    def extend(self, flights: Flights[Any]) -> bool:
        """Start decoding the next thought; False if the budget has no room now."""
        return flights.start(self, self.end, 1, self.path, len(self.thoughts)) > 0

    def take(self, landing: Landing[Any]) -> None:
        """Append the thought that has come back."""
        self.thoughts.extend(landing.thoughts)
        self.cut = not landing.thoughts

    def release(self, session: Session) -> None:
        """Give up every node below `start`."""
        if self.thoughts:
            session.discard(self.thoughts[0], subtree=True)

"""Greedy decoding: the most likely token each time, one path, no search. The baseline."""

from __future__ import annotations

from typing import ClassVar

from dendrite.search.algorithm import Algorithm, AlgorithmOptions
from dendrite.search.chain import Chain
from dendrite.search.flights import Flights
from dendrite.search.thought import Thought


class GreedyOptions(AlgorithmOptions):
    """Greedy decoding has no settings."""


class Greedy(Algorithm[GreedyOptions]):
    """Decode the most likely path to its end."""

    name: ClassVar[str] = "greedy"
    options_type: ClassVar[type[AlgorithmOptions]] = GreedyOptions
    _chain: Chain | None = None

    async def run(self) -> None:
        """Decode until the path is terminal or the budget is spent."""
        self._chain = chain = Chain(self.session.root, ())
        async with Flights[Chain](self.session, temperature=0.0) as flights:
            while not chain.finished and chain.extend(flights):
                for landing in await flights.landed():
                    chain.take(landing)

    def best(self) -> Thought | None:
        """The end of the path."""
        return self._chain.end if self._chain else None

    @property
    def nodes(self) -> int:
        """The root and the thoughts of the path."""
        return 1 + len(self._chain.thoughts) if self._chain else 1

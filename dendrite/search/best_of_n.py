"""Best-of-n: independent samples from the root, several at a time, until one is valid."""

from __future__ import annotations

from collections import deque
from typing import Annotated, ClassVar

from pydantic import Field

from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.chain import Chain
from dendrite.search.flights import Flights
from dendrite.search.session import Session
from dendrite.search.thought import Thought


class BestOfNOptions(AlgorithmOptions):
    """Settings of best-of-n."""

    n: Annotated[int, Field(ge=1)] | None = None
    """Most samples; None draws until the budget is spent."""
    in_flight: Annotated[int, Field(ge=1, le=4096)] = 8
    """Samples decoded at a time. As one ends the next begins."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    """The default is the best of 0.6 to 1.0 on validation problems of Countdown with the packaged model, at
    1,024 tokens a problem."""


class BestOfN(Algorithm[BestOfNOptions]):
    """Draw samples until one solves the task; a sample ends where the task's rule says that it has.

    Judged thought by thought, so that a sample that has broken a rule costs no more tokens.
    """

    name: ClassVar[str] = "best_of_n"
    options_type: ClassVar[type[AlgorithmOptions]] = BestOfNOptions

    def __init__(self, session: Session, options: BestOfNOptions) -> None:
        super().__init__(session, options)
        self._chains: list[Chain] = []

    async def run(self) -> None:
        """Sample until solved, out of budget, or `n` samples are drawn."""
        if self.session.root.terminal:
            return
        waiting: deque[Chain] = deque()
        async with Flights[Chain](self.session, self.options.temperature) as flights:
            while True:
                while len(flights) < self.options.in_flight and self._start(waiting, flights):
                    pass
                if not len(flights):
                    return
                for landing in await flights.landed():
                    chain = landing.owner
                    chain.take(landing)
                    if chain.cut and not chain.thoughts:
                        return  # the prompt itself has no room for a thought
                    if not chain.finished:
                        waiting.append(chain)
                    elif chain.end.solved:
                        return
                    else:
                        chain.release(self.session)

    def _start(self, waiting: deque[Chain], flights: Flights[Chain]) -> bool:
        """Go on with a sample begun, else begin one; False if there is none to begin, or no budget now."""
        if waiting:
            if waiting[0].extend(flights):
                waiting.popleft()
                return True
            return False
        if self.options.n is not None and len(self._chains) >= self.options.n:
            return False
        chain = Chain(self.session.root, (len(self._chains),))
        if not chain.extend(flights):
            return False
        self._chains.append(chain)
        return True

    def best(self) -> Thought | None:
        """The best end of a sample."""
        return best_of(chain.end for chain in self._chains) or self.session.start

    @property
    def nodes(self) -> int:
        """The root and all thoughts of all samples."""
        return 1 + sum(len(chain.thoughts) for chain in self._chains)

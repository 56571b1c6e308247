"""Self-consistency: sample many answers, and give the one on which most samples agree."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from heapq import nlargest
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dendrite.errors import InvalidArgument
from dendrite.search.aggregate import Aggregate, aggregate
from dendrite.search.algorithm import Algorithm, AlgorithmOptions
from dendrite.search.chain import Chain
from dendrite.search.flights import Flights
from dendrite.search.session import Session
from dendrite.search.thought import Thought

_ROUNDING = 1e-9
"""What a lead must exceed the votes to come by, since sums of votes by value are rounded."""


class SelfConsistencyOptions(AlgorithmOptions):
    """Settings of self-consistency."""

    n: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Most samples."""
    weights: Literal["count"] | Aggregate = "count"
    """What a sample's vote weighs: one each (Wang et al., 2022, section 2), or what the values of its thoughts come to
    by this aggregate (Snell et al., 2024, section 5.1), which needs a value head."""
    in_flight: Annotated[int, Field(ge=1, le=4096)] = 16
    """Samples decoded at a time. As one ends the next begins."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    early_stop: bool = True
    """Whether sampling stops once the samples left can't change the winning answer. (Which of its samples is given may
    be another than if all were drawn.)"""


def decided(votes: Iterable[float], left: int) -> bool:
    """Whether no vote that is still to come can change who wins: the first leads the second by more than they weigh.

    Args:
        votes: The sum for each answer.
        left: Votes to come, each in [0, 1] and for any answer.
    """
    first, second = nlargest(2, (0.0, 0.0, *votes))
    return first - second > left + _ROUNDING


class SelfConsistency(Algorithm[SelfConsistencyOptions]):
    """Draw samples, and let them vote on the task's answer (Wang et al., 2022, arXiv 2203.11171).

    No reward is looked at, neither to stop at the first solution nor to vote, so that the result is what the method
    finds where no rule could judge. A sample that has not ended, or gives no answer, has no vote.
    """

    name: ClassVar[str] = "self_consistency"
    options_type: ClassVar[type[AlgorithmOptions]] = SelfConsistencyOptions

    def __init__(self, session: Session, options: SelfConsistencyOptions) -> None:
        super().__init__(session, options)
        self._chains: list[Chain] = []
        self._left = 0
        """Samples that have not ended."""
        self._votes: dict[str, float] = {}
        """Of those that have ended, for each answer."""

    async def run(self) -> None:
        """Sample until `n` samples have ended, the vote is decided, or the budget is spent."""
        if self.session.root.terminal:
            return
        self._chains = [Chain(self.session.root, (index,)) for index in range(self.options.n)]
        self._left = len(self._chains)
        waiting = deque(self._chains)
        async with Flights[Chain](self.session, self.options.temperature) as flights:
            while True:
                while waiting and len(flights) < self.options.in_flight and waiting[0].extend(flights):
                    waiting.popleft()
                if not len(flights):
                    return
                for landing in await flights.landed():
                    chain = landing.owner
                    chain.take(landing)
                    self._check(landing.thoughts)
                    if chain.finished:
                        chain.release(self.session)
                        self._count(chain)
                    else:
                        waiting.appendleft(chain)  # what is begun ends first, and gives its pages back
                if self.options.early_stop and self._left and decided(self._votes.values(), self._left):
                    self.stopped = "decided"
                    return

    def _check(self, thoughts: list[Thought]) -> None:
        if self.options.weights != "count" and any(
            thought.value is None and thought.reward is None for thought in thoughts
        ):
            raise InvalidArgument("weights", self.options.weights, 'the model has no value head; use weights="count"')

    def _count(self, chain: Chain) -> None:
        """Count the vote of a sample that has ended."""
        self._left -= 1
        answer = self.session.task.answer(chain.end.text)
        if answer is not None:
            self._votes[answer] = self._votes.get(answer, 0.0) + self._weight(chain)

    def best(self) -> Thought | None:
        """The sample of the highest value among those that give the winning answer.

        The first seen wins among equal answers, and among equal samples. If no sample gives an answer it is the
        unfinished sample of the highest value, else the ended one.
        """
        votes: dict[str, list[Chain]] = {}
        for chain in self._chains:
            answer = self.session.task.answer(chain.end.text) if chain.finished else None
            if answer is not None:
                votes.setdefault(answer, []).append(chain)
        if votes:
            winners = max(votes.values(), key=lambda chains: math.fsum(map(self._weight, chains)))
            return max(winners, key=self._quality).end
        ends = (chain.end for chain in self._chains if chain.thoughts)
        return max(ends, key=lambda end: (not end.terminal, end.value or 0.0), default=self.session.start)

    def _weight(self, chain: Chain) -> float:
        return 1.0 if self.options.weights == "count" else self._quality(chain)

    def _quality(self, chain: Chain) -> float:
        by: Aggregate = "last" if self.options.weights == "count" else self.options.weights
        return aggregate([_step_value(thought) for thought in chain.thoughts], by)

    @property
    def nodes(self) -> int:
        """The root and all thoughts of all samples."""
        return 1 + sum(len(chain.thoughts) for chain in self._chains)


def _step_value(thought: Thought) -> float:
    """The value of a step, or the reward of an end that has none."""
    return (thought.worth if thought.value is None else thought.value) or 0.0

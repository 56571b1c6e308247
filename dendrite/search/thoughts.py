"""Tree of thoughts: a few proposals a node, and a plain breadth-first or depth-first search among them by value.

Yao et al., 2023 (arXiv 2305.10601), section 3: algorithm 1 is `tot_bfs`, algorithm 2 `tot_dfs`. The thoughts are
sampled (section 3, 2a) without replacement, and the search's value source takes the place of the prompts that judge
them.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import insort
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field

from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.flights import Flights
from dendrite.search.frontier import Distinct, Draws, Site, leaves, places, release, worth_of
from dendrite.search.session import Session
from dendrite.search.thought import Thought


class ThoughtsOptions(AlgorithmOptions):
    """Settings that both searches have."""

    k: Annotated[int, Field(ge=1, le=4096)] = 5
    """Proposals a node, all different: drawn together, and what repeats another is drawn again. There are fewer where
    the model has no more to say."""
    min_unseen: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """A node has no more proposals once the model gives anything but those it has less than this probability."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Nor once so many draws in a row have repeated one."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8


class TotBfsOptions(ThoughtsOptions):
    """Settings of the breadth-first tree of thoughts."""

    b: Annotated[int, Field(ge=1, le=65_536)] = 5
    """Nodes kept of each level."""


class TotDfsOptions(ThoughtsOptions):
    """Settings of the depth-first tree of thoughts."""

    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Nothing is looked for below a thought unless its value is above this. 0 prunes only what is surely lost."""


OptionsT = TypeVar("OptionsT", bound=ThoughtsOptions)


class _Thoughts(Algorithm[OptionsT]):
    """What both searches share: proposing thoughts, and telling what came of them."""

    def __init__(self, session: Session, options: OptionsT) -> None:
        super().__init__(session, options)
        self.root: Site | None = None

    def _draws(self, flights: Flights[Site]) -> Draws:
        return Draws(self.session, flights, Distinct(self.options.min_unseen, self.options.patience))

    async def _propose(self, level: list[Site], draws: Draws) -> bool:
        """Draw the proposals of a level; False if that solved the task or spent the budget."""
        for site in level:
            site.want = self.options.k
        return await draws.level(level, self._take)

    def _take(self, proposals: list[Site]) -> None:
        for proposal in proposals:
            value = worth_of(proposal.thought, ("algorithm", self.name))
            if not proposal.thought.ended:
                self._consider(proposal, value)

    @abstractmethod
    def _consider(self, proposal: Site, value: float) -> None:
        """Keep a proposal that something may follow, or give it up."""

    def best(self) -> Thought | None:
        """The best rewarded end, else the end or leaf of the highest value, be it one that was not followed."""
        return best_of(leaf.thought for leaf in leaves(self.root)) if self.root else None

    @property
    def nodes(self) -> int:
        """The root and all distinct proposals."""
        return sum(1 for _ in places(self.root)) if self.root else 1


def _rank(site: Site) -> tuple[float, tuple[int, ...]]:
    """Sorts the highest value first; among equals the first in the tree."""
    return -(site.thought.value or 0.0), site.path


class TotBfs(_Thoughts[TotBfsOptions]):
    """Level by level: propose below each of the `b` nodes kept, and keep the `b` of the highest values among all.

    A level is one batch. Ended paths take no place among the `b`, since nothing follows them. A proposal is given up as
    soon as `b` better ones have come.
    """

    name: ClassVar[str] = "tot_bfs"
    options_type: ClassVar[type[AlgorithmOptions]] = TotBfsOptions

    def __init__(self, session: Session, options: TotBfsOptions) -> None:
        super().__init__(session, options)
        self._kept: list[Site] = []

    async def run(self) -> None:
        """Search until solved, out of budget, or at the last level."""
        self.root = Site(self.session.root)
        level = [self.root]
        async with Flights[Site](self.session, self.options.temperature) as flights:
            draws = self._draws(flights)
            while level and await self._propose(level, draws):
                level, self._kept = self._kept, []

    def _consider(self, proposal: Site, value: float) -> None:
        insort(self._kept, proposal, key=_rank)
        release(self.session, self._kept[self.options.b :])
        del self._kept[self.options.b :]


class TotDfs(_Thoughts[TotDfsOptions]):
    """Down the proposal of the highest value first, back where nothing is left that is worth following.

    The `k` proposals of a node are one batch; one node is expanded at a time, since what the next one is depends on
    them.
    """

    name: ClassVar[str] = "tot_dfs"
    options_type: ClassVar[type[AlgorithmOptions]] = TotDfsOptions

    def __init__(self, session: Session, options: TotDfsOptions) -> None:
        super().__init__(session, options)
        self._kept: list[Site] = []

    async def run(self) -> None:
        """Search until solved, out of budget, or everything above the threshold has been followed."""
        self.root = Site(self.session.root)
        stack = [self.root]
        async with Flights[Site](self.session, self.options.temperature) as flights:
            draws = self._draws(flights)
            while stack and await self._propose([stack.pop()], draws):
                stack.extend(sorted(self._kept, key=_rank, reverse=True))  # the best is on top
                self._kept = []

    def _consider(self, proposal: Site, value: float) -> None:
        if value > self.options.threshold:
            self._kept.append(proposal)
        else:
            release(self.session, [proposal])

"""Tree of thoughts: a few proposals a node, and a plain breadth-first or depth-first search among them by value.

Yao et al., 2023 (arXiv 2305.10601), section 3: algorithm 1 is `tot_bfs`, algorithm 2 `tot_dfs`. The thoughts are
sampled (section 3, 2a) without replacement, and the value head takes the place of the prompts that judge them.
"""

from __future__ import annotations

from bisect import insort
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field

from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.level import grow, leaves, places, value_of
from dendrite.search.session import Flights, Landing, Session, Thought
from dendrite.search.tree import SearchNode


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
        self.root: SearchNode | None = None

    async def _propose(self, level: list[SearchNode], flights: Flights[SearchNode]) -> bool:
        """Draw the proposals of a level; False if that solved the task or spent the budget."""
        return await grow(self.session, level, flights, self._wanted, self._take, distinct=True)

    def _wanted(self, node: SearchNode) -> int:
        """How many more proposals a node shall have."""
        options = self.options
        if node.closed or node.overflowed or node.misses >= options.patience or node.unseen < options.min_unseen:
            return 0
        return options.k - len(node.children)

    def _take(self, landing: Landing[SearchNode]) -> bool:
        """Put proposals into the tree; True if the task is solved."""
        node = landing.owner
        node.overflowed = not landing.thoughts
        for thought in landing.thoughts:
            child, new = node.add(thought)
            if not new or thought.terminal:
                self.session.discard(thought)
            else:
                self._consider(child, value_of(thought, self.name))
        if node.parent is not None and self._wanted(node) <= 0:
            self.session.discard(node.thought)  # its children hold what they need of it
        return any(thought.solved for thought in landing.thoughts)

    def _consider(self, child: SearchNode, value: float) -> None:
        """Keep a proposal that something may follow, or give it up."""
        raise NotImplementedError

    def best(self) -> Thought | None:
        """The best rewarded terminal, else the leaf of the highest value, be it one that was not followed."""
        return best_of(leaves(self.root)) if self.root else None

    @property
    def nodes(self) -> int:
        """The root and all distinct proposals."""
        return sum(1 for _ in places(self.root)) if self.root else 1


def _rank(node: SearchNode) -> tuple[float, tuple[int, ...]]:
    """Sorts the highest value first; among equals the first in the tree."""
    return -(node.thought.value or 0.0), node.path


class TotBfs(_Thoughts[TotBfsOptions]):
    """Level by level: propose below each of the `b` nodes kept, and keep the `b` of the highest values among all.

    A level is one batch. Ended paths take no place among the `b`, since nothing follows them. A proposal is given up as
    soon as `b` better ones have come.
    """

    name: ClassVar[str] = "tot_bfs"
    options_type: ClassVar[type[AlgorithmOptions]] = TotBfsOptions

    def __init__(self, session: Session, options: TotBfsOptions) -> None:
        super().__init__(session, options)
        self._kept: list[SearchNode] = []

    async def run(self) -> None:
        """Search until solved, out of budget, or at the last level."""
        self.root = SearchNode(self.session.root)
        level = [self.root]
        async with Flights[SearchNode](self.session, self.options.temperature) as flights:
            while level and await self._propose(level, flights):
                level, self._kept = self._kept, []

    def _consider(self, child: SearchNode, value: float) -> None:
        insort(self._kept, child, key=_rank)
        if len(self._kept) > self.options.b:
            self.session.discard(self._kept.pop().thought)


class TotDfs(_Thoughts[TotDfsOptions]):
    """Down the proposal of the highest value first, back where nothing is left that is worth following.

    The `k` proposals of a node are one batch; one node is expanded at a time, since what the next one is depends on
    them.
    """

    name: ClassVar[str] = "tot_dfs"
    options_type: ClassVar[type[AlgorithmOptions]] = TotDfsOptions

    def __init__(self, session: Session, options: TotDfsOptions) -> None:
        super().__init__(session, options)
        self._kept: list[SearchNode] = []

    async def run(self) -> None:
        """Search until solved, out of budget, or everything above the threshold has been followed."""
        self.root = SearchNode(self.session.root)
        stack = [self.root]
        async with Flights[SearchNode](self.session, self.options.temperature) as flights:
            while stack and await self._propose([stack.pop()], flights):
                stack.extend(sorted(self._kept, key=_rank, reverse=True))  # the best is on top
                self._kept = []

    def _consider(self, child: SearchNode, value: float) -> None:
        if value > self.options.threshold:
            self._kept.append(child)
        else:
            self.session.discard(child.thought)

"""What a new node is worth by decoding on from it: one rollout, or several whose mean counts as one visit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dendrite.search.algorithm import best_of
from dendrite.search.chain import Chain
from dendrite.search.flights import Flights, Landing
from dendrite.search.session import Session
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode


@dataclass(slots=True, eq=False)
class Evaluation:
    """The rollouts that tell what `node` is worth. Together they are one visit in flight while any of them is."""

    node: SearchNode
    wanted: int
    returns: list[float] = field(default_factory=list)
    outstanding: int = 0

    def depart(self) -> None:
        """Count one more rollout on its way."""
        if not self.outstanding:
            self.node.depart(1)
        self.outstanding += 1

    def arrive(self) -> None:
        """Take a rollout back: its thought has returned, failed, or been cancelled."""
        self.outstanding -= 1
        if not self.outstanding:
            self.node.arrive(1)

    @property
    def mean(self) -> float | None:
        """The mean return once all have come to their ends, else None."""
        return sum(self.returns) / self.wanted if len(self.returns) == self.wanted else None


@dataclass(slots=True, eq=False, kw_only=True)
class Rollout(Chain):
    """A chain that takes part in telling what a node is worth."""

    evaluation: Evaluation

    @property
    def node(self) -> SearchNode:
        """The node that it starts from."""
        return self.evaluation.node


Owner: TypeAlias = SearchNode | Rollout
"""Whom an expansion is for: the node that its children are drawn at, or a rollout."""


def place_of(owner: Owner) -> SearchNode:
    """The node of the tree that an expansion is for."""
    return owner.node if isinstance(owner, Rollout) else owner


def take_back(owner: Owner, asked: int) -> None:
    """Take the visits of an expansion that is in flight no more back."""
    if isinstance(owner, Rollout):
        owner.evaluation.arrive()
    else:
        owner.pending -= asked
        owner.arrive(asked)


class Rollouts:
    """The rollouts of a search: those that wait to be decoded further, and the best end that any has come to.

    Args:
        session: Of the search.
        whole: Decode on to the end, for the reward there; else one thought, for the value there.
        discount: What a return loses at each thought of the rollout.
    """

    def __init__(self, session: Session, *, whole: bool, discount: float) -> None:
        self._session = session
        self._whole = whole
        self._discount = discount
        self._waiting: deque[Rollout] = deque()
        self.best: Thought | None = None
        """The best end of a rollout so far."""

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, node: SearchNode, n: int) -> None:
        """Send `n` rollouts after a new node."""
        evaluation = Evaluation(node, n)
        for index in range(n):
            evaluation.depart()
            self._waiting.append(Rollout(node.thought, (*node.path, -1 - index), evaluation=evaluation))

    def start(self, flights: Flights[Any]) -> bool:
        """Decode the next thought of the first that waits; False if the budget has no room now."""
        started = self._waiting[0].extend(flights)
        if started:
            self._waiting.popleft()
        return started

    def take(self, rollout: Rollout, landing: Landing[Any]) -> float | None:
        """Take a rollout's next thought; returns what its node is worth if this was the last that had to tell."""
        rollout.take(landing)
        if not rollout.finished and self._whole:
            rollout.evaluation.depart()
            self._waiting.append(rollout)
            return None
        end, evaluation = rollout.end, rollout.evaluation
        self.best = best_of([end] if self.best is None else [self.best, end])
        rollout.release(self._session)
        worth = (end.worth or 0.0) if end.ended or not self._whole else 0.0
        evaluation.returns.append(worth * self._discount ** len(rollout.thoughts))
        return evaluation.mean

    def drop(self, unwanted: Callable[[SearchNode], bool]) -> None:
        """Take back those that wait below the `unwanted` nodes, and release what they have decoded."""
        kept: deque[Rollout] = deque()
        for rollout in self._waiting:
            if unwanted(rollout.node):
                rollout.evaluation.arrive()
                rollout.release(self._session)
            else:
                kept.append(rollout)
        self._waiting = kept

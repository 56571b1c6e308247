"""The tree of a Monte Carlo tree search: statistics, children, and what is left to try below a node."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from dendrite.search.stats import VisitStats
from dendrite.search.thought import Thought


class SearchNode:
    """A thought, its visit statistics, and its distinct children.

    A draw is one child asked of the model. `pending` draws are in flight at this node; `stats.in_flight`
    counts those and all below. A draw that repeats a sibling's text is a miss: it makes no child.
    """

    __slots__ = (
        "_by_step",
        "_probabilities",
        "children",
        "closed",
        "expansions",
        "misses",
        "overflowed",
        "parent",
        "path",
        "pending",
        "stats",
        "thought",
    )

    def __init__(self, thought: Thought, parent: SearchNode | None = None, *, path: tuple[int, ...] = ()) -> None:
        """Make a node below `parent`, or a root; the `path` of a root is what all paths below it begin with."""
        self.thought = thought
        self.parent = parent
        """None for the root, also one that was another's child before."""
        self.path: tuple[int, ...] = (*parent.path, len(parent.children)) if parent else path
        self.stats = VisitStats()
        self.children: list[SearchNode] = []
        self.pending = 0
        self.expansions = 0
        """Expansions started here; numbers their seeds."""
        self.misses = 0
        """Misses since the last new child."""
        self.overflowed = False
        """Whether the model's context has no room for a child."""
        self.closed = thought.terminal
        """Whether there is nothing left to try here or below."""
        self._by_step: dict[str, SearchNode] = {}
        self._probabilities: list[dict[tuple[int, ...], float]] = []

    def add(self, thought: Thought) -> tuple[SearchNode, bool]:
        """Take in a drawn child; returns its node, and whether it is new.

        A child is the one event "the model writes this text here". A repetition adds nothing to its
        probability unless it spells the text in other tokens, which is an event of its own.
        """
        child = self._by_step.get(thought.step)
        new = child is None
        if child is None:
            child = SearchNode(thought, self)
            self._by_step[thought.step] = child
            self._probabilities.append({})
            self.children.append(child)
        self._probabilities[child.path[-1]][thought.tokens] = thought.logprob
        self.misses = 0 if new else self.misses + 1
        return child, new

    def logprobs(self) -> list[float]:
        """Natural log of the model's probability of each child."""
        return [_log_sum_exp(spellings.values()) for spellings in self._probabilities]

    def priors(self) -> list[float]:
        """The model's probability of each child among its siblings; they sum to 1."""
        logprobs = self.logprobs()
        if not logprobs:
            return []
        total = _log_sum_exp(logprobs)
        return [math.exp(logprob - total) for logprob in logprobs]

    @property
    def unseen(self) -> float:
        """The model's probability, at temperature 1, of a child that is not among the children."""
        return max(0.0, 1.0 - sum(map(math.exp, self.logprobs())))

    @property
    def lineage(self) -> Iterator[SearchNode]:
        """This node and its ancestors, up to the root."""
        node: SearchNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def depart(self, visits: int) -> None:
        """Count visits on their way, from the root to here."""
        for node in self.lineage:
            node.stats.in_flight += visits

    def arrive(self, visits: int) -> None:
        """Take visits in flight back: they have returned, failed, or been cancelled."""
        for node in self.lineage:
            node.stats.in_flight -= visits

    @property
    def places(self) -> Iterator[SearchNode]:
        """This node and all below it, parents first, siblings as they were drawn."""
        stack = [self]
        while stack:
            node = stack.pop()
            stack.extend(reversed(node.children))
            yield node

    @property
    def leaves(self) -> Iterator[SearchNode]:
        """Those of `places` that have no children."""
        return (node for node in self.places if not node.children)

    @property
    def cut_off(self) -> bool:
        """Whether this node, or one above it, is closed: nothing here counts any more."""
        return any(node.closed for node in self.lineage)

    def back_up(self, value: float, discount: float = 1.0) -> None:
        """Count a completed visit of this node and its ancestors, at `value` times `discount` a level above it."""
        for node in self.lineage:
            node.stats.add(value)
            value *= discount


def _log_sum_exp(values: Iterable[float]) -> float:
    terms = list(values)
    top = max(terms)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))

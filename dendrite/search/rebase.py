"""Reward-balanced search: at each depth a fixed number of samples, shared among the nodes by what they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, ClassVar

from pydantic import Field

from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.flights import Flights
from dendrite.search.frontier import Draws, Site, leaves, release, worth_of
from dendrite.search.thought import Thought

_ROUNDING = 1e-9
"""What a share may exceed a whole number by without being rounded up to the next."""


class RebaseOptions(AlgorithmOptions):
    """Settings of reward-balanced search."""

    width: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Samples drawn at a depth. Each path that ends takes one away from all depths below."""
    balance: Annotated[float, Field(gt=0.0, le=1_000.0)] = 0.2
    """Temperature of the softmax that shares the samples out: near 0 the best node takes all, a great one gives all
    nodes nearly the same. The default is meant for values in [0, 1]."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    """Of the draws."""


def allocate(values: Sequence[float], samples: int, balance: float) -> list[int]:
    """Share `samples` out among nodes in proportion to exp(value / balance).

    The law of REBASE's node expansion (Wu et al., "Inference scaling laws", 2024, arXiv 2408.00724). Shares rounded to
    the nearest whole number need not sum to what there is. So nodes are served from the best to the worst, the first
    among equals first, each with its share of what is left among those not yet served, rounded up.

    Args:
        values: What each node promises.
        samples: How many to share out, 0 or more.
        balance: The temperature of the softmax, above 0.

    Returns:
        Samples of each node; they sum to `samples` unless there is no node.
    """
    order = sorted(range(len(values)), key=lambda index: -values[index])
    weights = [math.exp((values[index] - values[order[0]]) / balance) for index in order]
    unserved = list(accumulate(reversed(weights)))[::-1]  # summed from the small to the great, the last one exact
    shares = [0] * len(values)
    for index, weight, around in zip(order, weights, unserved, strict=True):
        if not samples:
            break
        shares[index] = min(samples, math.ceil(samples * (weight / around) - _ROUNDING)) if weight else 0
        samples -= shares[index]
    return shares


class Rebase(Algorithm[RebaseOptions]):
    """REBASE: a depth is one batch, and all its nodes but the worst go on, the better ones with more children.

    A node's samples are drawn without replacement; one whose model has fewer continuations than its share draws those.
    A node without a share is released at once.
    """

    name: ClassVar[str] = "rebase"
    options_type: ClassVar[type[AlgorithmOptions]] = RebaseOptions
    _level: tuple[Site, ...] = ()
    """The nodes of the depth that are expanded, with the children that each of them has so far."""
    _ends: tuple[Thought, ...] = ()
    """Ended paths, and those that the model's context cut short."""
    _drawn = 0
    """Children of the depths before this."""

    async def run(self) -> None:
        """Search depth by depth until solved, out of budget, or all paths have ended."""
        root = Site(self.session.root, self.options.width)
        if root.thought.ended:
            self._ends = (root.thought,)
            return
        self._level = (root,)
        async with Flights[Site](self.session, self.options.temperature) as flights:
            draws = Draws(self.session, flights)
            width = self.options.width
            while self._level and await draws.level(self._level):
                children = [child for site in self._level for child in site.children]
                width -= sum(child.thought.ended for child in children)
                self._descend(children, width)

    def _descend(self, children: list[Site], width: int) -> None:
        """Share the samples of the next depth out among the children that have not ended."""
        self._drawn += len(children)
        self._ends += tuple(child.thought for child in children if child.thought.ended)
        self._ends += tuple(site.thought for site in self._level if not site.children)
        going_on = [child for child in children if not child.thought.ended]
        values = [worth_of(child.thought, ("algorithm", self.name)) for child in going_on]
        for child, share in zip(going_on, allocate(values, width, self.options.balance), strict=True):
            child.want = share
        release(self.session, (child for child in going_on if not child.want))
        self._level = tuple(child for child in going_on if child.want)

    def best(self) -> Thought | None:
        """The best rewarded end, else the end or leaf of the highest value."""
        return best_of([*(leaf.thought for site in self._level for leaf in leaves(site)), *self._ends])

    @property
    def nodes(self) -> int:
        """The root and all distinct thoughts, those without a share included."""
        return 1 + self._drawn + sum(len(site.children) for site in self._level)

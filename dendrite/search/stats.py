"""Visit statistics, and the scores that tree search selects by.

UCT (Kocsis and Szepesvári, 2006) and PUCT (Silver et al., 2017) take the statistics as `seen` shows them: with the
visits in flight, which tell parallel selections apart, counted in one of three ways. As they are, both scores count
visits in flight in the confidence term but not in the mean, as WU-UCT does (Liu et al., "Watch the Unobserved", ICLR
2020, eq. 4). With nothing in flight all ways are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

UCT_CONSTANT = math.sqrt(2)
PUCT_CONSTANT = 1.5

Parallel: TypeAlias = Literal["wu_uct", "virtual_loss", "none"]
"""How visits in flight count: in the confidence term alone, as completed visits of a low value, or not at all."""


@dataclass(slots=True)
class VisitStats:
    """Completed visits of a node (N or n), the sum of what they returned, and visits in flight (O or o)."""

    visits: int = 0
    total: float = 0.0
    in_flight: int = 0

    @property
    def mean(self) -> float:
        """Q, the mean of what the completed visits returned; 0 before the first."""
        return self.total / self.visits if self.visits else 0.0

    @property
    def reach(self) -> int:
        """N + O, the completed visits and those in flight."""
        return self.visits + self.in_flight

    def add(self, value: float) -> None:
        """Count one completed visit."""
        self.visits += 1
        self.total += value


def seen(stats: VisitStats, parallel: Parallel, loss: float = 0.0) -> VisitStats:
    """The statistics that selection goes by.

    `virtual_loss` takes a visit in flight for a completed one that returned `loss` (Chaslot et al., "Parallel
    Monte-Carlo Tree Search", 2008, where it is a lost game).
    """
    if parallel == "wu_uct":
        return stats
    if parallel == "virtual_loss":
        return VisitStats(stats.reach, stats.total + loss * stats.in_flight)
    return VisitStats(stats.visits, stats.total)


def expected(child: VisitStats, parent: VisitStats) -> float:
    """Q of a child; one without a completed visit is taken to be as good as its parent."""
    return child.mean if child.visits else parent.mean


def uct(child: VisitStats, parent: VisitStats, c: float = UCT_CONSTANT) -> float:
    """Q + c sqrt(ln(N + O) / (n + o)); infinite for a child that no visit has reached or is on its way to.

    A child whose first visit is still in flight is taken to be as good as its parent.
    """
    if child.reach == 0:
        return math.inf
    return expected(child, parent) + c * math.sqrt(math.log(max(parent.reach, 1)) / child.reach)


def puct(child: VisitStats, parent: VisitStats, prior: float, c: float = PUCT_CONSTANT) -> float:
    """Q + c P sqrt(N + O) / (1 + n + o); P is the model's probability of the child among its siblings.

    A child without a completed visit is taken to be as good as its parent.
    """
    return expected(child, parent) + c * prior * math.sqrt(parent.reach) / (1 + child.reach)


def child_limit(visits: int, k: float, alpha: float) -> int:
    """Progressive widening: ceil(k N^alpha), the most children a node of N visits may have (Coulom, 2007)."""
    return math.ceil(k * math.pow(max(visits, 1), alpha))

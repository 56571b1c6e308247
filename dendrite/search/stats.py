"""Visit statistics, and the scores that tree search selects by.

Both scores count visits in flight in the confidence term but not in the mean, as WU-UCT does (Liu et al.,
"Watch the Unobserved", ICLR 2020, eq. 4): selections that are under way turn others elsewhere without a
made-up loss. With nothing in flight they are plain UCT (Kocsis and Szepesvári, 2006) and plain PUCT (Silver
et al., 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

UCT_CONSTANT = math.sqrt(2)
PUCT_CONSTANT = 0.5


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

    def add(self, value: float) -> None:
        """Count one completed visit."""
        self.visits += 1
        self.total += value


def uct(child: VisitStats, parent: VisitStats, c: float = UCT_CONSTANT) -> float:
    """Q + c sqrt(ln(N + O) / (n + o)); infinite for a child that no visit has reached or is on its way to.

    A child whose first visit is still in flight is taken to be as good as its parent.
    """
    visits = child.visits + child.in_flight
    if visits == 0:
        return math.inf
    around = max(parent.visits + parent.in_flight, 1)
    return _mean(child, parent) + c * math.sqrt(math.log(around) / visits)


def puct(child: VisitStats, parent: VisitStats, prior: float, c: float = PUCT_CONSTANT) -> float:
    """Q + c P sqrt(N + O) / (1 + n + o); P is the model's probability of the child among its siblings.

    A child without a completed visit is taken to be as good as its parent.
    """
    around = parent.visits + parent.in_flight
    return _mean(child, parent) + c * prior * math.sqrt(around) / (1 + child.visits + child.in_flight)


def _mean(child: VisitStats, parent: VisitStats) -> float:
    return child.mean if child.visits else parent.mean


def child_limit(visits: int, k: float, alpha: float) -> int:
    """Progressive widening: ceil(k N^alpha), the most children a node of N visits may have (Coulom, 2007)."""
    return math.ceil(k * math.pow(max(visits, 1), alpha))

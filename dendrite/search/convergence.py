"""Which child of a root leads, and whether another can still overtake it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode


def most_visited(root: SearchNode) -> SearchNode | None:
    """The open child of the most visits, among equals of the highest mean, then the first drawn.

    None if all children are closed, or there are none.
    """
    children = (child for child in root.children if not child.closed)
    return max(children, key=lambda child: (child.stats.visits, child.stats.mean), default=None)


def converged(roots: Sequence[SearchNode], visits_left: int) -> bool:
    """Whether the most visited open child stays that, however `visits_left` more visits and those in flight fall.

    Children of several roots that are alike count as one. One that is not drawn yet could get all the visits.
    """
    arms: dict[str, list[int]] = {}
    for root in roots:
        for child in root.children:
            if not child.closed:
                arm = arms.setdefault(child.thought.step, [0, 0])
                arm[0] += child.stats.visits
                arm[1] += child.stats.reach
    if not arms:
        return False
    leader = max(arms.values(), key=lambda arm: arm[0])
    rivals = [reach for visits, reach in (arm for arm in arms.values() if arm is not leader)]
    return leader[0] > max([0, *rivals]) + sum(root.pending for root in roots) + visits_left


@dataclass(slots=True)
class Arm:
    """A first thought, with the visits that it had and what they returned in all trees together."""

    thought: Thought
    visits: int
    total: float

    @property
    def mean(self) -> float:
        """The mean of what the visits returned; 0 before the first."""
        return self.total / self.visits if self.visits else 0.0


def merged(roots: Iterable[SearchNode]) -> list[Arm]:
    """The children of several roots of the same prompt, alike ones as one, the most visited first."""
    arms: dict[str, Arm] = {}
    for root in roots:
        for child in root.children:
            arm = arms.setdefault(child.thought.step, Arm(child.thought, 0, 0.0))
            arm.visits += child.stats.visits
            arm.total += child.stats.total
    return sorted(arms.values(), key=lambda arm: (arm.visits, arm.mean), reverse=True)

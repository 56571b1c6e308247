"""Diverse verifier tree search: several greedy descents by value, each in a part of the tree of its own."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.session import Flights, Thought
from dendrite.search.siblings import Draws, Place, Siblings, release, worth


class DvtsOptions(AlgorithmOptions):
    """Settings of diverse verifier tree search."""

    subtrees: Annotated[int, Field(ge=1, le=4096)] = 4
    """Descents, side by side."""
    branches: Annotated[int, Field(ge=1, le=4096)] = 4
    """Children of which each descent goes on with the best; all different."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8


class Dvts(Algorithm[DvtsOptions]):
    """Diverse verifier tree search (Beeching, Tunstall, Rush, "Scaling test-time compute with open models", 2024).

    Each subtree draws `branches` children, keeps the one that the value head estimates highest, and goes on from there
    until its path has ended; a child that has ended counts with its reward. No subtree knows of another or waits for
    one. They share no path either: the first thoughts, `subtrees` times `branches` of them, are drawn at the root
    without replacement and dealt out in turn. (In the paper each subtree samples its own, and some may begin alike.)
    Where the model has fewer first thoughts, subtrees have fewer to choose from, and there may be fewer subtrees.
    """

    name: ClassVar[str] = "dvts"
    options_type: ClassVar[type[AlgorithmOptions]] = DvtsOptions
    _growing: tuple[Siblings, ...] = ()
    """Children that are being drawn: the root's, then those of the places where the subtrees stand."""
    _ends: tuple[Thought, ...] = ()
    """Ended paths, and those that the model's context cut short."""
    _drawn = 0
    """Children that are not among those being drawn."""

    async def run(self) -> None:
        """Descend until solved, out of budget, or all subtrees have ended."""
        root = self.session.root
        if root.terminal:
            self._ends = (root,)
            return
        async with Flights[Siblings](self.session, self.options.temperature) as flights:
            draws = Draws(self.session, flights)
            self._grow(draws, Place(root), self.options.subtrees * self.options.branches)
            while (complete := await draws.next()) is not None and not complete.solved:
                self._growing = tuple(siblings for siblings in self._growing if siblings is not complete)
                self._drawn += len(complete.children)
                if not complete.children:
                    self._ends += (complete.parent.thought,)
                subtrees = self.options.subtrees if complete.parent.thought is root else 1
                for index in range(min(subtrees, len(complete.children))):
                    self._advance(draws, complete.children[index::subtrees])

    def _grow(self, draws: Draws, place: Place, children: int) -> None:
        siblings = Siblings(place, children)
        self._growing += (siblings,)
        draws.add(siblings)

    def _advance(self, draws: Draws, children: list[Place]) -> None:
        """Go on with the best of a subtree's children, the first drawn among equals, and give up the others."""
        best = max(children, key=lambda child: worth(child.thought, ("algorithm", self.name)))
        release(self.session, (child for child in children if child is not best))
        self._ends += tuple(child.thought for child in children if child.thought.terminal)
        if not best.thought.terminal:
            self._grow(draws, best, self.options.branches)

    def best(self) -> Thought | None:
        """The best rewarded end, else the end or the tip of a subtree of the highest value."""
        return best_of([*(leaf.thought for each in self._growing for leaf in each.leaves), *self._ends])

    @property
    def nodes(self) -> int:
        """The root and all distinct thoughts, those that lost included."""
        return 1 + self._drawn + sum(len(siblings.children) for siblings in self._growing)

"""Diverse verifier tree search: several greedy descents by value, each in a part of the tree of its own."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.flights import Flights
from dendrite.search.frontier import Draws, Site, leaves, release, worth_of
from dendrite.search.thought import Thought


class DvtsOptions(AlgorithmOptions):
    """Settings of diverse verifier tree search."""

    subtrees: Annotated[int, Field(ge=1, le=4096)] = 4
    """Descents, side by side."""
    branches: Annotated[int, Field(ge=1, le=4096)] = 4
    """Children of which each descent goes on with the best; all different."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8


class Dvts(Algorithm[DvtsOptions]):
    """Diverse verifier tree search (Beeching, Tunstall, Rush, "Scaling test-time compute with open models", 2024).

    Each subtree draws `branches` children, keeps the one of the highest value, and goes on from there
    until its path has ended; a child that has ended counts with its reward. No subtree knows of another or waits for
    one. They share no path either: the first thoughts, `subtrees` times `branches` of them, are drawn at the root
    without replacement and dealt out in turn. (In the paper each subtree samples its own, and some may begin alike.)
    Where the model has fewer first thoughts, subtrees have fewer to choose from, and there may be fewer subtrees.
    """

    name: ClassVar[str] = "dvts"
    options_type: ClassVar[type[AlgorithmOptions]] = DvtsOptions
    _growing: tuple[Site, ...] = ()
    """Whose children are being drawn: the root, then the sites where the subtrees stand."""
    _ends: tuple[Thought, ...] = ()
    """Ended paths, and those that the model's context cut short."""
    _drawn = 0
    """Children that are not among those being drawn."""

    async def run(self) -> None:
        """Descend until solved, out of budget, or all subtrees have ended."""
        root = self.session.root
        if root.ended:
            self._ends = (root,)
            return
        async with Flights[Site](self.session, self.options.temperature) as flights:
            draws = Draws(self.session, flights)
            self._grow(draws, Site(root), self.options.subtrees * self.options.branches)
            while (landed := await draws.next()) is not None:
                site, _ = landed
                if site.solved:
                    return
                if not site.missing:
                    self._deal(draws, site)

    def _grow(self, draws: Draws, site: Site, children: int) -> None:
        site.want = children
        self._growing += (site,)
        draws.add(site)

    def _deal(self, draws: Draws, site: Site) -> None:
        """Hand the children of a site, which are all there, to its subtree, or those of the root to all subtrees."""
        self._growing = tuple(each for each in self._growing if each is not site)
        self._drawn += len(site.children)
        if not site.children:
            self._ends += (site.thought,)
        subtrees = 1 if site.path else self.options.subtrees
        for index in range(min(subtrees, len(site.children))):
            self._advance(draws, site.children[index::subtrees])

    def _advance(self, draws: Draws, children: list[Site]) -> None:
        """Go on with the best of a subtree's children, the first drawn among equals, and give up the others."""
        best = max(children, key=lambda child: worth_of(child.thought, ("algorithm", self.name)))
        release(self.session, (child for child in children if child is not best))
        self._ends += tuple(child.thought for child in children if child.thought.ended)
        if not best.thought.ended:
            self._grow(draws, best, self.options.branches)

    def best(self) -> Thought | None:
        """The best rewarded end, else the end or the tip of a subtree of the highest value."""
        return best_of([*(leaf.thought for site in self._growing for leaf in leaves(site)), *self._ends])

    @property
    def nodes(self) -> int:
        """The root and all distinct thoughts, those that lost included."""
        return 1 + self._drawn + sum(len(site.children) for site in self._growing)

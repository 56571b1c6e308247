"""Step-level beam search: of all children of the paths it keeps, each level keeps the best few."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from dendrite.search.algorithm import Algorithm, AlgorithmOptions
from dendrite.search.flights import Flights
from dendrite.search.frontier import Draws, Site, leaves, release, worth_of
from dendrite.search.thought import Thought

ALPHA = 0.6
"""The default strength of the length normalisation."""


class BeamOptions(AlgorithmOptions):
    """Settings of beam search."""

    width: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most paths kept from one level to the next."""
    branches: Annotated[int, Field(ge=1, le=4096)] = 4
    """Children drawn of each path kept, all different."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    """Of the draws; what is drawn is ranked by its probability at temperature 1."""
    score: Literal["logprob", "value"] = "value"
    """What paths are ranked by: the value, or the model's probability of the whole path, with its
    length normalised (see `length_normalised`)."""
    alpha: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """Strength of the length normalisation, with score="logprob" only; None is 0.6, and 0 normalises nothing."""

    @field_validator("alpha")
    @classmethod
    def _has_a_use(cls, alpha: float | None, others: ValidationInfo) -> float | None:
        if alpha is not None and others.data.get("score") != "logprob":
            raise ValueError('has no use without score="logprob"')
        return alpha


def length_normalised(logprob: float, length: int, alpha: float) -> float:
    """Divide log P by ((5 + L) / 6)^alpha (Wu et al., "Google's neural machine translation system", 2016, eq. 14).

    Args:
        logprob: Natural log of the probability P of a path.
        length: L, its number of generated tokens.
        alpha: Strength; 0 leaves log P as it is. Without it, every token makes a path worse.
    """
    return logprob / math.pow((5 + length) / 6, alpha)


class Beam(Algorithm[BeamOptions]):
    """Beam search, a thought at a time. A level is one batch.

    A path that has ended competes on: it is ranked among the others, by its reward where they have an estimate, by
    the same normalised probability where that is the score, and holds its place in the beam until better ones take
    it. The search is over once all that it keeps has ended. An end that has lost its place is still the answer if it
    was rewarded more than what is kept. Paths that have not ended are released as they lose.
    """

    name: ClassVar[str] = "beam"
    options_type: ClassVar[type[AlgorithmOptions]] = BeamOptions
    _ends: tuple[Site, ...] = ()
    """Ends that hold a place in the beam."""
    _level: tuple[Site, ...] = ()
    """The other places, with the children that each of them has so far."""
    _lost: Site | None = None
    """The best of the ends that have lost their places, and of the paths that the model's context cut short."""
    _drawn = 0
    """Children of the levels before this."""

    async def run(self) -> None:
        """Search level by level until solved, out of budget, or all that is kept has ended."""
        async with Flights[Site](self.session, self.options.temperature) as flights:
            draws = Draws(self.session, flights)
            kept = [Site(self.session.root)]
            while self._place(kept):
                if not await draws.level(self._level):
                    return
                kept = self._select()

    def _place(self, kept: list[Site]) -> bool:
        """Tell ends from paths that go on; False if there are none of these."""
        self._ends = tuple(site for site in kept if site.thought.ended)
        self._level = tuple(site for site in kept if not site.thought.ended)
        for site in self._level:
            site.want = self.options.branches
        return bool(self._level)

    def _select(self) -> list[Site]:
        """Choose what the beam keeps, the best first, and the first drawn among equals."""
        children = [child for site in self._level for child in site.children]
        ranked = sorted((*self._ends, *children), key=self._score, reverse=True)
        kept, lost = ranked[: self.options.width], ranked[self.options.width :]
        release(self.session, lost)
        gone = [site for site in lost if site.thought.ended]
        gone += [site for site in self._level if not site.children]
        self._lost = self._best(gone if self._lost is None else [self._lost, *gone])
        self._drawn += len(children)
        return kept

    def _score(self, site: Site) -> float:
        if self.options.score == "value":
            return worth_of(site.thought, ("score", "value"))
        alpha = ALPHA if self.options.alpha is None else self.options.alpha
        return length_normalised(site.logprob, site.length, alpha)

    def _best(self, sites: Iterable[Site]) -> Site | None:
        """The site of the highest reward, then an end whose reward is hidden, then that of the highest score."""
        return max(sites, key=self._merit, default=None)

    def _merit(self, site: Site) -> tuple[float, bool, float]:
        thought = site.thought
        if self.options.score == "logprob":
            score = self._score(site)
        else:
            score = 0.0 if thought.reward is not None else thought.value or 0.0
        return thought.reward or 0.0, thought.ended and thought.reward is None, score

    def best(self) -> Thought | None:
        """The best rewarded end, else the path of the highest score."""
        tips = [leaf for site in self._level for leaf in leaves(site)]
        found = self._best([*self._ends, *tips, *([self._lost] if self._lost else [])])
        return found.thought if found else None

    @property
    def nodes(self) -> int:
        """The root and all distinct thoughts, those that lost included."""
        return 1 + self._drawn + sum(len(site.children) for site in self._level)

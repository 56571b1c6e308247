"""Particle filtering over thoughts: a population that follows the model, and doubles where the value is high.

Puri et al., 2025 (arXiv 2502.01618), algorithm 1. In each step every particle draws one thought, is weighed by its
value, and the population is drawn anew in proportion to the weights. Where beam search takes the values at their
word, this takes them as a likelihood: a particle of a middling value lives on with the probability that it deserves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from dendrite.config import MAX_SEED
from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.flights import Flights
from dendrite.search.frontier import Draws, Site, leaves, places, release, worth_of
from dendrite.search.seeds import derive_seed
from dendrite.search.session import Session
from dendrite.search.thought import Thought

_SUREST = 1.0 - 1e-7
"""Greatest value taken at its word: the log-odds of 1 are infinite."""


class ParticleFilterOptions(AlgorithmOptions):
    """Settings of particle filtering."""

    n: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Particles."""
    ess: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Resample where the effective sample size is below this share of `n`: 1 does after every step, as the paper does;
    0 never, so that the particles are independent samples."""
    weight_temperature: Annotated[float, Field(gt=0.0, le=1_000.0)] = 1.0
    """Weights are the softmax of the log-odds of the values over this: below 1 nearer to beam search, above 1 to
    independent samples."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    """Of the sampling of thoughts; the default is the paper's."""


def log_odds(value: float) -> float:
    """ln(v / (1 - v)): minus infinity at 0, and finite at 1."""
    value = min(value, _SUREST)
    return math.log(value / (1.0 - value)) if value > 0.0 else -math.inf


def softmax(scores: Sequence[float]) -> list[float]:
    """exp(s) / sum of exp(s), in [0, 1]; equal weights where every score is minus infinity."""
    top = max(scores)
    if top == -math.inf:
        return [1.0 / len(scores)] * len(scores)
    terms = [math.exp(score - top) for score in scores]
    total = math.fsum(terms)
    return [term / total for term in terms]


def systematic_counts(weights: Sequence[float], n: int, uniform: float) -> list[int]:
    """Systematic resampling (Kitagawa, 1996, appendix): how often each weight is drawn, n draws in all.

    The unit interval is cut in proportion to the weights, and draw i falls at (i + u) / n. A count differs from its
    mean, n w_j over the sum of the weights, by less than 1, and is 0 for a weight of 0.

    Args:
        weights: Not negative, with a positive sum.
        n: Draws.
        uniform: u, uniform in [0, 1): the only random number there is.
    """
    total = sum(weights)
    counts, below, reached = [], 0.0, 0
    for weight in weights:
        below += weight
        # The draws below a boundary are counted without rounding, and all lie below the last: none may be lost, or
        # given to a weight of 0.
        rest, whole = math.modf(n * below / total)
        upto = n if below >= total else int(whole) + (rest > uniform)
        counts.append(upto - reached)
        reached = upto
    return counts


def effective_sample_size(weights: Sequence[float], counts: Sequence[int]) -> float:
    """(sum w)^2 / sum w^2 (Kong, Liu, Wong, 1994) over `counts[j]` particles of weight `weights[j]` each."""
    pairs = list(zip(weights, counts, strict=True))
    return math.fsum(w * c for w, c in pairs) ** 2 / math.fsum(w * w * c for w, c in pairs)


class ParticleFilter(Algorithm[ParticleFilterOptions]):
    """Particle filtering with systematic resampling.

    The weight of a particle is that of its path as it stands, softmax(log-odds(value) / weight_temperature) as in the
    authors' code, and is not multiplied up over steps: a value is of the whole path, and would count twice. A particle
    that has ended stays in the population at its weight, which is by its reward: 0 where that is 0, since the rule is
    sure; so is one that the model's context has no room to go on with. All particles of a step are one batch.
    """

    name: ClassVar[str] = "particle_filter"
    options_type: ClassVar[type[AlgorithmOptions]] = ParticleFilterOptions

    def __init__(self, session: Session, options: ParticleFilterOptions) -> None:
        super().__init__(session, options)
        self.root: Site | None = None
        self.population: list[Site] = []
        """Where the particles are, after the last whole step. A site wants a child for each particle that is there."""

    async def run(self) -> None:
        """Step until solved, out of budget, or no particle can go on."""
        self.root = Site(self.session.root, self.options.n)
        self.population = [self.root]
        step = 0
        async with Flights[Site](self.session, self.options.temperature) as flights:
            draws = Draws(self.session, flights, distinct=None)
            while any(site.missing for site in self.population):
                if not await draws.level(self.population, self._arrive):
                    return
                self.population = [place for site in self.population for place in site.children or [site]]
                self._resample(step)
                step += 1

    def _arrive(self, children: list[Site]) -> None:
        """Put the particle that has been drawn there at each child."""
        for child in children:
            worth_of(child.thought, ("algorithm", self.name))
            child.want = 1

    def _resample(self, step: int) -> None:
        """Draw the population anew if its weights have become too unequal, and give up nodes without particles."""
        if not any(site.missing for site in self.population):
            return
        weights = softmax([self._log_weight(site) for site in self.population])
        counts = [site.want for site in self.population]
        n = sum(counts)
        if effective_sample_size(weights, counts) >= self.options.ess * n:
            return
        shares = [weight * count for weight, count in zip(weights, counts, strict=True)]
        uniform = derive_seed(self.session.seed, (-1,), step) / (MAX_SEED + 1)
        for site, count in zip(self.population, systematic_counts(shares, n, uniform), strict=True):
            site.want = count
        release(self.session, (site for site in self.population if not site.want))
        self.population = [site for site in self.population if site.want]

    def _log_weight(self, site: Site) -> float:
        if site.exhausted:
            return -math.inf
        return log_odds(worth_of(site.thought, ("algorithm", self.name))) / self.options.weight_temperature

    def best(self) -> Thought | None:
        """The best rewarded end, else the end or leaf of the highest value, of all that any particle came to."""
        return best_of(leaf.thought for leaf in leaves(self.root)) if self.root else None

    @property
    def nodes(self) -> int:
        """The root and all thoughts drawn."""
        return sum(1 for _ in places(self.root)) if self.root else 1

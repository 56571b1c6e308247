"""Thompson sampling: what has been seen of an arm, and draws of what it may be worth on the whole, given that.

These are the posteriors of AB-MCTS-A (Inoue et al., 2025, "Wider or Deeper? Scaling LLM Inference-Time Compute with
Adaptive Branching Tree Search", arXiv 2503.04412), of rewards in [0, 1] that are taken to be Gaussian or Beta. Draws
that are in flight at an arm narrow its posterior and leave its mean, as WU-UCT has them count in the confidence term
alone: an arm that is being tried because little is known of it is not tried for that once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from pydantic import ConfigDict

from dendrite.errors import InvalidArgument
from dendrite.search.seeds import derive_seed

_DECISION = -2
"""Ends the paths that key decisions, so that no expansion shares a seed with one."""
_LEAST_CHI2 = 1e-300
"""Rounding may make a draw of chi-squared 0, by which can't be divided."""
_BITS = 1074
"""Every finite double is a whole multiple of 2^-1074."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Count, sum and sum of squares of rewards. They are exact, so that the order of additions leaves no trace.

    `total` counts in units of 2^-1074, `squares` in units of 2^-2148.
    """

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, reward: float) -> Tally:
        """Tally one finite reward."""
        numerator, denominator = reward.as_integer_ratio()
        total = (numerator << _BITS) // denominator
        return cls(1, total, total * total)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.count - other.count, self.total - other.total, self.squares - other.squares)

    @property
    def sum(self) -> float:
        """Their sum, rounded once."""
        return self.total / (1 << _BITS)

    @property
    def missing(self) -> float:
        """What they lack of a sum of 1 each."""
        return ((self.count << _BITS) - self.total) / (1 << _BITS)

    @property
    def mean(self) -> float:
        """Their mean; 0 before the first."""
        return self.total / (self.count << _BITS) if self.count else 0.0

    @property
    def spread(self) -> float:
        """The sum of squared deviations from the mean."""
        deviations = self.count * self.squares - self.total * self.total
        return deviations / (self.count << 2 * _BITS) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Gaussian:
    """What is known of the mean of Gaussian rewards of unknown variance: a normal-inverse-gamma distribution.

    sigma^2 ~ inverse-gamma(nu / 2, nu tau2 / 2), and mu ~ N(mean, sigma^2 / kappa): `mean` is held as firmly as `kappa`
    rewards would have it, `tau2`, the variance of one reward, as firmly as `nu` would. By itself mu is distributed as
    Student's t with nu degrees of freedom around `mean`, at scale sqrt(tau2 / kappa). The defaults are the prior of the
    authors' code.

    Raises:
        InvalidArgument: A number is not finite, or one other than `mean` not positive.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    mean: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    tau2: float = 0.1

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise InvalidArgument("mean", self.mean, "must be finite")
        for name in ("kappa", "nu", "tau2"):
            _check_positive(name, getattr(self, name))

    def posterior(self, seen: Tally) -> Gaussian:
        """Update it with n rewards of mean x̄.

        kappa' = kappa + n, nu' = nu + n, mean' = (kappa mean + n x̄) / kappa', and
        nu' tau2' = nu tau2 + sum (x - x̄)^2 + n kappa (mean - x̄)^2 / kappa'.
        """
        n = seen.count
        kappa, nu = self.kappa + n, self.nu + n
        mean = (self.kappa * self.mean + seen.sum) / kappa
        surprise = n * self.kappa * (self.mean - seen.mean) ** 2 / kappa
        return Gaussian(mean, kappa, nu, (self.nu * self.tau2 + seen.spread + surprise) / nu)

    def draw(self, rng: Random, in_flight: int = 0) -> float:
        """Draw mu; each reward in flight counts as one more of `kappa`."""
        chi2 = max(rng.gammavariate(self.nu / 2, 2.0), _LEAST_CHI2)
        return self.mean + rng.gauss() * math.sqrt(self.tau2 / (self.kappa + in_flight)) * math.sqrt(self.nu / chi2)


@dataclass(frozen=True, slots=True)
class Beta:
    """What is known of the mean of rewards in [0, 1], each a trial that succeeded in part: a Beta distribution.

    The default is Jeffreys' prior, as in the authors' code.

    Raises:
        InvalidArgument: A number is not positive and finite.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    a: float = 0.5
    b: float = 0.5

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            _check_positive(name, getattr(self, name))

    def posterior(self, seen: Tally) -> Beta:
        """Update it with rewards: a' = a + sum x, and b' = b + sum (1 - x)."""
        return Beta(self.a + seen.sum, self.b + seen.missing)

    def draw(self, rng: Random, in_flight: int = 0) -> float:
        """Draw the mean; each reward in flight counts as one more, shared out between `a` and `b` as they are."""
        firmer = 1.0 + in_flight / (self.a + self.b)
        return rng.betavariate(self.a * firmer, self.b * firmer)


Belief: TypeAlias = Gaussian | Beta


def decision(seed: int, path: Iterable[int], count: int) -> Random:
    """Return the source of the draws for one decision: by the search's seed, the node's place, and those before it."""
    return Random(derive_seed(seed, (*path, _DECISION), count))


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise InvalidArgument(name, value, "must be positive and finite")

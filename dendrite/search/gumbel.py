"""Planning with Gumbel noise: a decision among few children that improves on the model's own policy.

Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022: the root's children are a sample of the
policy without replacement, and the one of the highest perturbed log-probability plus weighed value is chosen, after
sequential halving (Karnin et al., 2013) has spread the expansions over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dendrite.search.noise import uniform
from dendrite.search.stats import VisitStats, expected
from dendrite.search.tree import SearchNode

_LEAST = 1e-12
"""Taken for probabilities that rounding has eaten up."""


def perturbed(probabilities: Sequence[float], noise: Sequence[float]) -> list[float]:
    """Gumbel-perturbed log-probabilities of a sample without replacement, in the order drawn.

    The items of the highest perturbed log-probabilities are such a sample, in falling order. Backwards, given the
    sample, each is a Gumbel variate located at the log of what probability was left, cut off at the one before
    (Kool et al., "Stochastic beams and where to find them", ICML 2019).

    Args:
        probabilities: Of the items among all that there are.
        noise: A uniform variate in (0, 1) for each.
    """
    values: list[float] = []
    left, bound = 1.0, math.inf
    for probability, u in zip(probabilities, noise, strict=True):
        place = math.log(max(left, _LEAST))
        bound = place - math.log(math.exp(place - bound) - math.log(u))
        values.append(bound)
        left -= probability
    return values


def halving(considered: int, simulations: int) -> list[tuple[int, int]]:
    """The phases of sequential halving: how many children are still considered, and expansions for each of them.

    Of m children each of the ceil(log2 m) phases gets an equal share of the expansions, at least one a child, and
    halves the children, though never below 2 before the end; what is left over goes to the last phase. No more
    children are considered than there are expansions.
    """
    phases: list[tuple[int, int]] = []
    kept, left = min(considered, simulations), simulations
    rounds = max(1, math.ceil(math.log2(kept)))
    while len(phases) < rounds and left >= kept:
        share = left if len(phases) == rounds - 1 else simulations // rounds
        each = min(max(1, share // kept), left // kept)
        phases.append((kept, each))
        left -= kept * each
        kept = max(2, kept // 2)
    return phases


def sigma(mean: float, most: int, c_visit: float, c_scale: float) -> float:
    """The weight of a value against a log-probability: (c_visit + max_b N(b)) c_scale q."""
    return (c_visit + most) * c_scale * mean


def improved_policy(
    priors: Sequence[float], children: Sequence[VisitStats], own: float, c_visit: float, c_scale: float
) -> list[float]:
    """softmax(log P + sigma(completed Q)), a policy of higher expected value than P where the values are right.

    Children without a completed visit are given the mixed value of their parent: its own estimate and the values of
    the visited children, weighed by their priors, averaged as one visit against all of theirs.

    Args:
        priors: The policy P over the children.
        children: Their statistics.
        own: The parent's own estimate.
        c_visit: See `sigma`.
        c_scale: See `sigma`.
    """
    visited = [(prior, child) for prior, child in zip(priors, children, strict=True) if child.visits]
    weight = sum(prior for prior, _ in visited)
    visits = sum(child.visits for _, child in visited)
    mixed = own
    if weight > 0:
        mixed = (own + visits * sum(prior * child.mean for prior, child in visited) / weight) / (1 + visits)
    most = max((child.visits for child in children), default=0)
    logits = [
        math.log(max(prior, _LEAST)) + sigma(child.mean if child.visits else mixed, most, c_visit, c_scale)
        for prior, child in zip(priors, children, strict=True)
    ]
    top = max(logits, default=0.0)
    weights = [math.exp(logit - top) for logit in logits]
    total = sum(weights)
    return [each / total for each in weights]


class SequentialHalving:
    """One decision among the children of a root: gives each phase's children their expansions, then halves them.

    The noise is keyed by the seed and the child's path. The children count as drawn in their order from the model's
    policy at temperature 1; at other temperatures the perturbed log-probabilities are approximate.
    """

    def __init__(self, root: SearchNode, simulations: int, seed: int, c_visit: float, c_scale: float) -> None:
        self._root = root
        self._weights = (c_visit, c_scale)
        noise = [uniform(seed, child.path, 0) for child in root.children]
        values = perturbed([math.exp(logprob) for logprob in root.logprobs()], noise)
        self._perturbed = {child.path: value for child, value in zip(root.children, values, strict=True)}
        self._started: dict[tuple[int, ...], int] = {}
        opened = [child for child in root.children if not child.closed]
        self._phases = halving(max(1, len(opened)), simulations)
        self.considered = self._best(opened, self._phases[0][0])
        """Those that are still in, the highest score first."""

    def _best(self, among: Sequence[SearchNode], n: int) -> list[SearchNode]:
        """The `n` open ones of the highest scores."""
        return sorted((child for child in among if not child.closed), key=self.score, reverse=True)[:n]

    def score(self, child: SearchNode) -> float:
        """Perturbed log-probability plus weighed value: g + log P + sigma(q)."""
        most = max(each.stats.visits for each in self._root.children)
        return self._perturbed[child.path] + sigma(expected(child.stats, self._root.stats), most, *self._weights)

    def ranked(self) -> Iterator[SearchNode]:
        """The open children to go below now: those that lack expansions in this phase, the fewest had first."""
        lacking = [child for child in self.considered if self._lacks(child)]
        return iter(sorted(lacking, key=lambda child: (self._started.get(child.path, 0), -self.score(child))))

    def _lacks(self, child: SearchNode) -> bool:
        return bool(self._phases) and not child.closed and self._started.get(child.path, 0) < self._phases[0][1]

    def started(self, node: SearchNode) -> None:
        """Count an expansion that was started at `node`, somewhere below the root."""
        for place in node.lineage:
            if place.parent is self._root:
                self._started[place.path] = self._started.get(place.path, 0) + 1

    def advance(self) -> None:
        """Go on to the next phase, with the better half, once nothing of this one is left to start or to land."""
        while self._phases and not any(self._lacks(child) or child.stats.in_flight for child in self.considered):
            self._phases.pop(0)
            self._started.clear()
            self.considered = self._best(self.considered, self._phases[0][0] if self._phases else 1)

    @property
    def decided(self) -> bool:
        """Whether there is nothing left to compare: the phases are over, or at most one child is in."""
        return not self._phases or len([child for child in self.considered if not child.closed]) < 2

    @property
    def winner(self) -> SearchNode | None:
        """The open child of the highest score among those still in; None if all are closed."""
        return next(iter(self._best(self.considered, 1)), None)

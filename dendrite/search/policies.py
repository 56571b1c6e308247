"""Where a search goes on: policies over a tree whose nodes have values in [0, 1], one new child at a time.

They see the tree alone, never what its nodes stand for, so that one implementation serves a search whose children come
from outside (`ask_tell`) and one on the engine (`abmcts`). What they choose follows from the tree, the seed and the
number of choices before, never from the order in which children came.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from dendrite.errors import InvalidArgument
from dendrite.search.stats import PUCT_CONSTANT, UCT_CONSTANT, VisitStats, child_limit, puct, uct
from dendrite.search.thompson import Belief, Gaussian, Tally, decision

ROOT = 0
"""The root's id."""

StateT = TypeVar("StateT")


@dataclass(slots=True)
class Place(Generic[StateT]):
    """A node of the tree. Nodes refer to one another by id.

    `path` holds the numbers of the children from the root, which count what was asked for at each node, so that a
    number may be missing. The root has no value.
    """

    parent: int | None = None
    path: tuple[int, ...] = ()
    state: StateT | None = None
    value: float | None = None
    prior: float | None = None
    children: list[int] = field(default_factory=list)
    """Ids, in the order in which they were asked for."""
    seen: Tally = field(default_factory=Tally)
    """Values of the node itself and of all below: of each visit."""
    made: Tally = field(default_factory=Tally)
    """Values of the children alone."""
    waiting: int = 0
    """Children asked for that have not come yet."""
    in_flight: int = 0
    """Those, and the ones of all nodes below."""
    asked: int = 0
    """Children asked for so far; numbers them."""
    passed: int = 0
    """Those, and the ones of all nodes below; numbers the decisions taken here."""
    finished: bool = False
    """Whether no more children are asked for here."""
    closed: bool = False
    """Whether none are asked for here or below, and none are to come."""

    @property
    def deeper(self) -> Tally:
        """Values of the nodes below the children."""
        below = self.seen - self.made
        return below if self.value is None else below - Tally.of(self.value)

    @property
    def stats(self) -> VisitStats:
        """Its visits, completed and in flight."""
        return VisitStats(self.seen.count, self.seen.sum, self.in_flight)


Places = Mapping[int, Place[Any]]


class Policy(ABC):
    """Chooses the node that a child is asked for."""

    by_priors: ClassVar[bool] = False
    """Whether it can go by the prior probabilities of children."""

    @abstractmethod
    def select(self, places: Places, seed: int) -> int | None:
        """Return the id of the node to expand next, None if there is none now. Changes nothing."""


class Descent(Policy):
    """Goes from the root down, and back up where it has come to nothing that can be expanded now."""

    def select(self, places: Places, seed: int) -> int | None:
        """Return the first node on the way down that the policy would rather expand than pass through."""
        way = [(ROOT, self.order(ROOT, places, seed))]
        while way:
            here, choices = way[-1]
            choice = next(choices, None)
            if choice == here:
                return here
            if choice is None:
                way.pop()
            else:
                way.append((choice, self.order(choice, places, seed)))
        return None

    @abstractmethod
    def order(self, node: int, places: Places, seed: int) -> Iterator[int]:
        """Yield what may be done at `node`, the best first: its own id for a new child, or a child to go down to."""


def _open(place: Place[Any], places: Places) -> list[int]:
    return [child for child in place.children if not places[child].closed]


@dataclass(frozen=True, slots=True)
class UctPolicy(Descent):
    """UCT with progressive widening; PUCT where children come with priors. See `dendrite.search.stats`.

    A node of N visits may have ceil(k N^alpha) children that are not closed; only then does the search pass through.
    Priors are divided by their sum over the siblings. `c`, the weight of exploration, is by default the square root of
    2 for UCT and 1.5 for PUCT.

    Raises:
        InvalidArgument: `c` is negative, `widening_k` not positive, or `widening_alpha` not in [0, 1].
    """

    by_priors: ClassVar[bool] = True

    c: float | None = None
    widening_k: float = 1.0
    widening_alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.c is not None and not 0.0 <= self.c < math.inf:
            raise InvalidArgument("c", self.c, "must be at least 0, and finite")
        if not 0.0 < self.widening_k < math.inf:
            raise InvalidArgument("widening_k", self.widening_k, "must be positive and finite")
        if not 0.0 <= self.widening_alpha <= 1.0:
            raise InvalidArgument("widening_alpha", self.widening_alpha, "must be in [0, 1]")

    def order(self, node: int, places: Places, seed: int) -> Iterator[int]:
        """Widen while the limit allows, else go down by score; the child asked for first among equals."""
        place, children = places[node], _open(places[node], places)
        stats = place.stats
        room = child_limit(stats.visits, self.widening_k, self.widening_alpha) - len(children) - place.waiting
        if room > 0 and not place.finished:
            yield node
        scores = self._scores(place, stats, places)
        yield from sorted(children, key=lambda child: -scores[child])

    def _scores(self, place: Place[Any], stats: VisitStats, places: Places) -> dict[int, float]:
        priors = {child: places[child].prior for child in place.children}
        known = [prior for prior in priors.values() if prior is not None]
        if not known:
            c = UCT_CONSTANT if self.c is None else self.c
            return {child: uct(places[child].stats, stats, c) for child in priors}
        c, total = PUCT_CONSTANT if self.c is None else self.c, math.fsum(known)
        return {child: puct(places[child].stats, stats, (prior or 0.0) / total, c) for child, prior in priors.items()}


@dataclass(frozen=True, slots=True)
class AbMctsA(Descent):
    """AB-MCTS-A, adaptive branching with node aggregation (Inoue et al., 2025, arXiv 2503.04412).

    At every node Thompson sampling decides whether to go wider or deeper. GEN, a new child, is judged by the values
    that the children came with; CONT, all children as one, by the values of the nodes below them. Where CONT wins, a
    child is chosen likewise, by its own value and those of all nodes below it. `prior` is what is known of each of
    these before the first value, and says whether values are Gaussian or Beta.
    """

    prior: Belief = field(default_factory=Gaussian)

    def order(self, node: int, places: Places, seed: int) -> Iterator[int]:
        """Draw for GEN and CONT; where CONT wins, or nothing more is asked for here, draw for each child."""
        place, children = places[node], _open(places[node], places)
        if not children:
            if not place.finished:
                yield node
            return
        rng = decision(seed, place.path, place.passed)
        gen = self.prior.posterior(place.made).draw(rng, place.waiting)
        cont = self.prior.posterior(place.deeper).draw(rng, place.in_flight - place.waiting)
        if gen >= cont and not place.finished:
            yield node
        beliefs = {child: self.prior.posterior(places[child].seen) for child in children}
        draws = {child: belief.draw(rng, places[child].in_flight) for child, belief in beliefs.items()}
        yield from sorted(children, key=lambda child: -draws[child])
        if not place.finished:
            yield node


@dataclass(frozen=True, slots=True)
class BestFirst(Policy):
    """Greedy best-first search: the node of the highest value, wherever in the tree it is, gets one more child.

    Among equals it is the one with the fewest children asked for, then the one asked for first. The root, which has no
    value, comes last. With probability `epsilon` it is any node instead, each as likely as the others.

    Raises:
        InvalidArgument: `epsilon` is not in [0, 1].
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon <= 1.0:
            raise InvalidArgument("epsilon", self.epsilon, "must be in [0, 1]")

    def select(self, places: Places, seed: int) -> int | None:
        """Choose among all nodes that may have more children."""
        nodes = sorted(node for node, place in places.items() if not place.finished)
        if not nodes:
            return None
        rng = decision(seed, (), places[ROOT].passed)
        if rng.random() < self.epsilon:
            return rng.choice(nodes)
        return min(nodes, key=lambda node: self._rank(node, places[node]))

    @staticmethod
    def _rank(node: int, place: Place[Any]) -> tuple[float, int, int]:
        return (math.inf if place.value is None else -place.value, place.asked, node)

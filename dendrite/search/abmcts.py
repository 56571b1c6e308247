"""AB-MCTS-A over thoughts: at every node, chance weighs a new thought against going on from those there are.

Inoue et al., 2025, "Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive Branching Tree Search" (arXiv
2503.04412). Where MCTS has its branching set by a schedule of visits, here it follows from what wide and deep have been
worth so far. The tree and its policy are those of `dendrite.search.ask_tell`; the engine answers the asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.ask_tell import Ask, AskTell
from dendrite.search.flights import Flights, Landing
from dendrite.search.frontier import worth_of
from dendrite.search.policies import ROOT, AbMctsA
from dendrite.search.session import Session
from dendrite.search.thompson import Belief, Beta, Gaussian
from dendrite.search.thought import Thought

OPTIMISTIC: Mapping[str, Belief] = MappingProxyType(
    {"gaussian": Gaussian(mean=0.8, kappa=0.2, tau2=0.01), "beta": Beta(a=1.0, b=0.25)}
)
"""Priors that expect much of what has not been tried, and hardly insist: the search dives before it widens.

They were chosen on validation problems of Countdown with the packaged model, where they solve about twice as many
within 400 tokens as the priors of the authors' code, which are `Gaussian()` and `Beta()`.
"""


class AbMctsOptions(AlgorithmOptions):
    """Settings of AB-MCTS-A."""

    dist: Literal["gaussian", "beta"] = "gaussian"
    """How what a thought is worth is taken to be distributed around its mean."""
    prior: Gaussian | Beta | None = None
    """What is known of a mean before the first thought (see `dendrite.search.thompson`): `mean`, `kappa`, `nu` and
    `tau2` for "gaussian", `a` and `b` for "beta". None is `OPTIMISTIC`."""
    in_flight: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most thoughts drawn at a time. 1 takes the fewest tokens: each draw knows of all before it."""
    min_unseen: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """A node draws no more once the model gives anything but its children less than this probability."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Nor once so many draws in a row have repeated a child."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    greedy_first: bool = True
    """Whether a node's first child is the model's most likely continuation; all others are sampled."""

    @model_validator(mode="after")
    def _check_prior(self) -> Self:
        if self.prior is not None and isinstance(self.prior, Gaussian) != (self.dist == "gaussian"):
            raise ValueError(f"the prior must be one of dist={self.dist!r}")
        return self

    @property
    def policy(self) -> AbMctsA:
        """The tree policy that these settings describe."""
        return AbMctsA(OPTIMISTIC[self.dist] if self.prior is None else self.prior)


@dataclass(slots=True)
class Drawn:
    """What has been drawn at one node: the thoughts, each spelling once, and how often nothing new came last."""

    thoughts: dict[tuple[int, ...], Thought] = field(default_factory=dict)
    steps: set[str] = field(default_factory=set)
    misses: int = 0

    def add(self, thought: Thought) -> bool:
        """Take a draw in; returns whether its text is new."""
        self.thoughts.setdefault(thought.tokens, thought)
        new = thought.step not in self.steps
        self.steps.add(thought.step)
        self.misses = 0 if new else self.misses + 1
        return new

    @property
    def unseen(self) -> float:
        """The model's probability, at temperature 1, of anything else."""
        return 1.0 - math.fsum(math.exp(thought.logprob) for thought in self.thoughts.values())


class AbMcts(Algorithm[AbMctsOptions]):
    """AB-MCTS with node aggregation.

    Each call of the backend draws one child, without replacement: none repeats a child that had come back when it
    started. One that repeats a child drawn beside it is taken back, and tells nothing. A child is judged by its reward
    where its path has ended, else by its value. A node that draws no more is released at once, for its children keep
    what they need of its KV; the search goes on from them.
    """

    name: ClassVar[str] = "abmcts_a"
    options_type: ClassVar[type[AlgorithmOptions]] = AbMctsOptions

    def __init__(self, session: Session, options: AbMctsOptions) -> None:
        super().__init__(session, options)
        self.tree: AskTell[Thought] | None = None
        self._drawn: dict[int, Drawn] = {}
        self._refused: Ask[Thought] | None = None
        """Asked for when the budget had no room; the next to be started."""

    async def run(self) -> None:
        """Search until solved, out of budget, or every node draws no more."""
        self.tree = tree = AskTell(self.options.policy, self.session.seed, self.session.root)
        if self.session.root.terminal:
            tree.finish(ROOT)
        try:
            async with Flights[Ask[Thought]](self.session, self.options.temperature) as flights:
                await self._search(tree, flights)
        finally:
            for ask in tree.waiting:
                tree.give_up(ask.id)

    async def _search(self, tree: AskTell[Thought], flights: Flights[Ask[Thought]]) -> None:
        while True:
            while len(flights) < self.options.in_flight and self._start(tree, flights):
                pass
            if not len(flights):
                return
            solved = [self._land(tree, landing) for landing in await flights.landed()]
            if any(solved):
                return

    def _start(self, tree: AskTell[Thought], flights: Flights[Ask[Thought]]) -> bool:
        """Start drawing one more child; False if all that could be drawn is under way, or there is no budget now."""
        ask = self._next(tree)
        if ask is None:
            return False
        *path, number = ask.path
        known = self._drawn.setdefault(ask.node, Drawn()).thoughts.values()
        greedy = self.options.greedy_first and not number
        if not flights.start(ask, _thought(ask), 1, tuple(path), number, greedy=greedy, without=known):
            self._refused = ask
            return False
        return True

    def _next(self, tree: AskTell[Thought]) -> Ask[Thought] | None:
        ask, self._refused = self._refused, None
        if ask is not None and not tree.node(ask.node).finished:
            return ask
        if ask is not None:
            tree.give_up(ask.id)
            self._let_go(tree, ask)
        return next(iter(tree.ask()), None)

    def _land(self, tree: AskTell[Thought], landing: Landing[Ask[Thought]]) -> bool:
        """Take in what an ask has brought; True if the task is solved."""
        ask, drawn = landing.owner, self._drawn[landing.owner.node]
        thought = next(iter(landing.thoughts), None)
        if thought is not None and drawn.add(thought):
            self._tell(tree, ask, thought)
        else:
            tree.give_up(ask.id)
            if thought is not None:
                self.session.discard(thought)
        if thought is None or drawn.misses >= self.options.patience or drawn.unseen < self.options.min_unseen:
            tree.finish(ask.node)
        self._let_go(tree, ask)
        return thought is not None and thought.solved

    def _tell(self, tree: AskTell[Thought], ask: Ask[Thought], thought: Thought) -> None:
        worth = thought.worth if thought.worth is not None else worth_of(thought, ("algorithm", self.name))
        child = tree.tell(ask.id, worth, thought)
        self.session.backed_up(thought, worth)
        if thought.terminal:
            tree.finish(child)
            self.session.discard(thought)

    def _let_go(self, tree: AskTell[Thought], ask: Ask[Thought]) -> None:
        """Release the node of an ask that was the last there. The root's prompt is under all the others."""
        if ask.node != ROOT and tree.node(ask.node).finished and not tree.node(ask.node).waiting:
            self.session.discard(_thought(ask))

    def best(self) -> Thought | None:
        """The best rewarded terminal, else the terminal or leaf of the highest value."""
        nodes = self.tree.nodes if self.tree else []
        return best_of(node.state for node in nodes if node.state is not None and not node.children)

    @property
    def nodes(self) -> int:
        """The root and all distinct thoughts."""
        return len(self.tree.nodes) if self.tree else 1


def _thought(ask: Ask[Thought]) -> Thought:
    assert ask.state is not None, "every node of the tree was told with its thought"
    return ask.state

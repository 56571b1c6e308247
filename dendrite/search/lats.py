"""Language agent tree search: a tree search that starts again, with what its failures have taught it, when it fails.

Zhou et al., 2023, "Language Agent Tree Search Unifies Reasoning Acting and Planning in Language Models" (arXiv
2310.04406), section 4: Monte Carlo tree search whose nodes are valued by the model and by its agreement with itself,
and whose failed ends are reflected on. Where the paper asks a prompt for a value, this takes the search's value source.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from pydantic import Field, field_validator

from dendrite.errors import ContextOverflow
from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.chain import Chain
from dendrite.search.flights import Flights, Landing
from dendrite.search.frontier import worth_of
from dendrite.search.reflection import Reflecting
from dendrite.search.selection import descend
from dendrite.search.session import Session
from dendrite.search.stats import UCT_CONSTANT, uct
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode

_SLOT = "{reflection}"
_SEEDS = -1
"""Begins the paths of the trees after the first, which key their seeds; no child index is negative."""


class LatsOptions(AlgorithmOptions):
    """Settings of language agent tree search."""

    children: Annotated[int, Field(ge=1, le=4096)] = 5
    """Children drawn of a node, in one expansion; alike ones become one child."""
    c: Annotated[float, Field(ge=0.0, le=1_000.0)] = UCT_CONSTANT
    """Weight of exploration."""
    value_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """A new node is worth this times its value, and the rest times its share of the draws: how many of its siblings,
    itself included, say the same. At 0 no value is needed."""
    simulate: bool = True
    """Whether the best new child of each expansion is decoded on to its end, whose reward is then a visit of its own.
    Without it the search learns of ends only where the tree comes to them."""
    failures: Annotated[int, Field(ge=1, le=65_536)] = 3
    """Failed ends that a tree may come to before the search starts again."""
    reflections: Annotated[int, Field(ge=1, le=65_536)] = 3
    """Most reflections in the prompt, the last ones. No more of a tree's failures are reflected on."""
    reflection_tokens: Annotated[int, Field(ge=1)] = 128
    """Most tokens of a reflection; they count in the budget."""
    reflection_prompt: Annotated[str, Field(min_length=1)] = (
        "\nThis attempt has failed. In short, what went wrong, and what should be done instead?\n"
    )
    """What is asked after a failed end, unless the task asks something itself (`Task.reflect`)."""
    template: str = "\nWhat an earlier attempt has taught: {reflection}\n"
    """What is appended to the prompt for each reflection; {reflection} stands for it."""
    in_flight: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most calls of the backend at a time."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8

    @field_validator("template")
    @classmethod
    def _has_a_slot(cls, template: str) -> str:
        if template.count(_SLOT) != 1:
            raise ValueError(f"must contain {_SLOT} once")
        return template


@dataclass(slots=True, eq=False, kw_only=True)
class Simulation(Chain):
    """A chain that tells what `node` leads to."""

    node: SearchNode


Owner: TypeAlias = SearchNode | Simulation


class Lats(Algorithm[LatsOptions]):
    """LATS. A tree is grown as by MCTS: select by UCT, expand, evaluate, simulate, back up.

    Once `failures` of its paths have ended with a reward below 1, or nothing is left to try in it, the tree is given
    up. The model reflects on the failures, and a new tree is grown below the prompt and what it said, with statistics
    of its own; so on, until solved or out of budget. The best of all trees is the answer. Where the search may not see
    rewards no path is known to have failed, and there is one tree only.

    A new node counts as one visit, at its reward where it has ended, else at its value and self-consistency. (In the
    paper that is where UCT begins for a node without visits.)
    """

    name: ClassVar[str] = "lats"
    options_type: ClassVar[type[AlgorithmOptions]] = LatsOptions

    def __init__(self, session: Session, options: LatsOptions) -> None:
        super().__init__(session, options)
        self.tree: SearchNode | None = None
        """The root of the tree that is growing."""
        self.reflections: list[str] = []
        """Those in the prompt, the oldest first."""
        self._reflecting = Reflecting(session, self._question, options.reflection_tokens)
        self._simulations: deque[Simulation] = deque()
        self._failed: list[Thought] = []
        """Failed ends of the present tree."""
        self._trees = 0
        self._asked = 0
        self._solved = False
        self._left: Thought | None = None
        """The best of the trees before, and of all simulations."""
        self._nodes_left = 0

    async def run(self) -> None:
        """Grow trees until solved, out of budget, or the last one has no failure to learn from."""
        root: Thought | None = self.session.root
        while root is not None:
            self.tree = SearchNode(root, path=(_SEEDS, self._trees) if self._trees else ())
            self._trees += 1
            await self._grow(self.tree)
            root = await self._start_over(self.tree)

    async def _grow(self, tree: SearchNode) -> None:
        """Grow a tree until it has failed; what is in flight then still comes in, for it has been paid for."""
        flights = Flights[Owner](self.session, self.options.temperature)
        try:
            async with flights:
                while not self._solved:
                    while len(flights) < self.options.in_flight and self._start(tree, flights):
                        pass
                    if not len(flights):
                        return
                    for landing in await flights.landed():
                        self._land(landing)
        finally:
            for owner, asked in flights.cancelled:
                self._take_back(owner, asked)
            while self._simulations:
                self._take_back(self._simulations.popleft(), 1)

    def _start(self, tree: SearchNode, flights: Flights[Owner]) -> bool:
        """Start one more expansion; False if the tree has failed, all is under way, or there is no budget now."""
        if len(self._failed) >= self.options.failures:
            return False
        if self._simulations:
            started = self._simulations[0].extend(flights)
            if started:
                self._simulations.popleft()
            return started
        node = descend(tree, self._ranked, self._draws)
        asked = flights.start(node, node.thought, self.options.children, node.path, 0) if node is not None else 0
        if node is not None and asked:
            node.expansions = 1
            node.pending = asked
            node.depart(asked)
        return asked > 0

    def _draws(self, node: SearchNode) -> int:
        """Children to draw at a node: all at once, for their agreement is measured on them."""
        return 0 if node.expansions else self.options.children

    def _ranked(self, node: SearchNode) -> Iterator[SearchNode]:
        """The open children from the highest UCT score to the lowest; the first drawn among equals."""
        still_open = [child for child in node.children if not child.closed]
        return iter(sorted(still_open, key=lambda child: -uct(child.stats, node.stats, self.options.c)))

    def _land(self, landing: Landing[Owner]) -> None:
        owner = landing.owner
        self._take_back(owner, landing.asked)
        if isinstance(owner, Simulation):
            self._go_on(owner, landing)
            self._close(owner.node)
        else:
            self._expand(owner, landing.thoughts)
            self._close(owner)
        self._solved = self._solved or any(thought.solved for thought in landing.thoughts)

    @staticmethod
    def _take_back(owner: Owner, asked: int) -> None:
        """Take visits in flight back."""
        if isinstance(owner, Simulation):
            owner.node.arrive(1)
        else:
            owner.pending -= asked
            owner.arrive(asked)

    def _expand(self, node: SearchNode, thoughts: list[Thought]) -> None:
        """Put the children of a node into the tree, evaluate them, and simulate from the best."""
        draws = Counter(thought.step for thought in thoughts)
        for thought in thoughts:
            _, new = node.add(thought)
            if not new:
                self.session.discard(thought)
        values = [self._evaluate(child.thought, draws[child.thought.step] / len(thoughts)) for child in node.children]
        for child, value in zip(node.children, values, strict=True):
            self._back_up(child, value)
            if child.closed:
                self._end(child.thought)
        going_on = [index for index, child in enumerate(node.children) if not child.closed]
        if self.options.simulate and going_on:
            best = node.children[max(going_on, key=values.__getitem__)]
            best.depart(1)
            self._simulations.append(Simulation(best.thought, (*best.path, -1), node=best))

    def _evaluate(self, thought: Thought, share: float) -> float:
        """What a new thought is worth, which such a share of the draws has written."""
        if thought.reward is not None:
            return thought.reward
        weight = self.options.value_weight
        value = worth_of(thought, ("value_weight", weight)) if weight else 0.0
        return weight * value + (1.0 - weight) * share

    def _go_on(self, simulation: Simulation, landing: Landing[Owner]) -> None:
        """Take a simulation's next thought; back its end up if it was the last."""
        simulation.take(landing)
        if not simulation.finished:
            simulation.node.depart(1)
            self._simulations.append(simulation)
            return
        end = simulation.end
        self._back_up(simulation.node, (end.worth or 0.0) if end.ended else 0.0)
        for thought in simulation.thoughts[:-1]:
            self.session.discard(thought)
        if simulation.thoughts:
            self._left = best_of([end] if self._left is None else [self._left, end])
            self._end(end)

    def _back_up(self, node: SearchNode, value: float) -> None:
        node.back_up(value)
        self.session.backed_up(node.thought, value)

    def _end(self, end: Thought) -> None:
        """Keep an end that has failed in a way of its own for a reflection; give any other up."""
        failed = end.reward is not None and not end.solved
        if not failed or any(end.text == other.text for other in self._failed):
            self.session.discard(end)
            return
        self._failed.append(end)
        if len(self._failed) > self.options.reflections:
            self.session.discard(self._failed[-1 - self.options.reflections])

    def _close(self, node: SearchNode) -> None:
        """Close a node if there is nothing left to try below it, then its parent likewise."""
        for place in node.lineage:
            if not place.closed:
                if place.stats.in_flight or not place.expansions or not all(child.closed for child in place.children):
                    return
                place.closed = True
                if place.parent is not None:
                    self.session.discard(place.thought)

    async def _start_over(self, tree: SearchNode) -> Thought | None:
        """Learn from the failures of a tree, and plant the next; None if there is nothing to learn, or no budget."""
        if self._solved or not self._failed or not self._affordable():
            return None
        ends, self._failed = self._failed[-self.options.reflections :], []
        learnt = await self._reflecting.reflect(ends, self._asked, self.options.temperature)
        self._asked += len(ends)
        self.reflections = _latest([*self.reflections, *learnt], self.options.reflections)
        if not self._affordable():
            return None
        self._left, self._nodes_left, self.tree = self.best(), self.nodes, None
        self.session.discard(tree.thought, subtree=True)
        await self.session.flush()
        try:
            return await self.session.new_root(self.prompt)
        except ContextOverflow:
            return None

    def _affordable(self) -> bool:
        return self.session.meter.spent is None

    def _question(self, text: str) -> str:
        question = self.session.task.reflect(text)
        return self.options.reflection_prompt if question is None else question

    @property
    def prompt(self) -> str:
        """The task's prompt, and what has been learnt."""
        lessons = (self.options.template.replace(_SLOT, reflection) for reflection in self.reflections)
        return self.session.task.prompt + "".join(lessons)

    def best(self) -> Thought | None:
        """The best rewarded end of all trees, simulations included, else the end or leaf of the highest value."""
        leaves = [leaf.thought for leaf in self.tree.leaves] if self.tree else []
        return best_of([*([self._left] if self._left else []), *leaves])

    @property
    def nodes(self) -> int:
        """The roots and all distinct thoughts of all trees; neither simulations nor reflections count."""
        growing = sum(1 for _ in self.tree.places) if self.tree else 0
        return max(1, self._nodes_left + growing)


def _latest(texts: list[str], most: int) -> list[str]:
    """The last different texts, at most so many, each where it stood last."""
    latest = list(dict.fromkeys(reversed(texts)))[:most]
    return latest[::-1]

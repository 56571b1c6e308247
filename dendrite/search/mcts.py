"""Monte Carlo tree search over thoughts, with several expansions in flight and no barriers between them.

One round selects a node from the root down by UCT or PUCT, draws children there, and backs up what they are
worth: the reward of a terminal, else the value head's estimate or the reward of a rollout. A node is expanded
again as its visits grow (progressive widening), for a model has more continuations than one expansion draws.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from dendrite.errors import InvalidArgument
from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.chain import Chain
from dendrite.search.session import Flights, Landing, Session, Thought
from dendrite.search.stats import PUCT_CONSTANT, UCT_CONSTANT, child_limit, puct, uct
from dendrite.search.tree import SearchNode


class MctsOptions(AlgorithmOptions):
    """Settings of Monte Carlo tree search.

    The defaults of `c`, `widening_k`, `widening_alpha`, `min_unseen`, `patience`, `temperature` and `greedy_first` were
    chosen on validation problems of Countdown with the packaged model, for the fewest generated tokens; widening, the
    temperature and `greedy_first` mattered most. They dive first and branch late: a node has one child until a few
    visits below it have told what that is worth. Where many expansions in flight matter more than tokens, raise
    `widening_k`.
    """

    selection: Literal["uct", "puct"] = "puct"
    """How a child is chosen; both count visits in flight (see `dendrite.search.stats`)."""
    c: Annotated[float, Field(ge=0.0, le=1_000.0)] | None = None
    """Weight of exploration; None is the square root of 2 for UCT and 0.5 for PUCT."""
    value: Literal["head", "rollout"] = "head"
    """What a new node is worth: the value head's estimate, or the reward of decoding on to the end."""
    in_flight: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most calls of the backend at a time. 1 takes the fewest tokens: each draw knows of all before it."""
    children: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most children drawn in one expansion."""
    widening_k: Annotated[float, Field(gt=0.0, le=10_000.0)] = 0.3
    widening_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """A node of N visits may have ceil(k N^alpha) children, and more only while all it has are closed."""
    min_unseen: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """A node draws no more once the model gives anything but its children less than this probability."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Nor once so many draws in a row have repeated a child."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    greedy_first: bool = True
    """Whether a node's first child is the model's most likely continuation; all others are sampled. The first path
    is then the one that greedy decoding takes."""

    @property
    def exploration(self) -> float:
        """The weight of exploration in use."""
        if self.c is not None:
            return self.c
        return UCT_CONSTANT if self.selection == "uct" else PUCT_CONSTANT


@dataclass(slots=True, eq=False, kw_only=True)
class Rollout(Chain):
    """A chain that tells what `node` is worth."""

    node: SearchNode


Owner: TypeAlias = SearchNode | Rollout


class Mcts(Algorithm[MctsOptions]):
    """Monte Carlo tree search.

    A subtree is closed, and never selected again, once all its paths have come to their ends and its nodes
    draw no more; the KV of its nodes is released at once. Children are drawn without replacement: no draw repeats
    a child that had come back when it started. One that repeats a child drawn beside it counts as a visit of the
    parent, at the child's mean, so that a node which only repeats itself loses its turn.
    """

    name: ClassVar[str] = "mcts"
    options_type: ClassVar[type[AlgorithmOptions]] = MctsOptions

    def __init__(self, session: Session, options: MctsOptions) -> None:
        super().__init__(session, options)
        self.root: SearchNode | None = None
        self._rollouts: deque[Rollout] = deque()
        self._rollout_ends: list[Thought] = []

    async def run(self) -> None:
        """Search until solved, out of budget, or everything is closed."""
        self.root = SearchNode(self.session.root)
        flights = Flights[Owner](self.session, self.options.temperature)
        try:
            async with flights:
                await self._search(self.root, flights)
        finally:
            for owner, asked in flights.cancelled:
                self._return(owner, asked)
            for rollout in self._rollouts:
                self._return(rollout, 1)

    async def _search(self, root: SearchNode, flights: Flights[Owner]) -> None:
        while True:
            while len(flights) < self.options.in_flight and self._start(root, flights):
                pass
            if not len(flights):
                return
            solved = [self._land(landing) for landing in await flights.landed()]
            if any(solved):
                return

    def _start(self, root: SearchNode, flights: Flights[Owner]) -> bool:
        """Start one more expansion; False if all that could be done is under way, or there is no budget now.

        Rollouts under way go first: what they return guides the next selection.
        """
        if self._rollouts:
            rollout = self._rollouts[0]
            started = rollout.extend(flights)
            if started:
                self._rollouts.popleft()
            return started
        node = self.select(root)
        if node is None:
            return False
        greedy = self.options.greedy_first and not node.expansions
        draws = 1 if greedy else self.draws(node)
        known = [child.thought for child in node.children]
        asked = flights.start(node, node.thought, draws, node.path, node.expansions, greedy=greedy, without=known)
        if asked:
            node.expansions += 1
            node.pending += asked
            node.depart(asked)
        return asked > 0

    def select(self, node: SearchNode) -> SearchNode | None:
        """Descend to the node to expand next: at each step the child of the highest score that leads to one.

        None if there is none now: all is closed, or waits for what is in flight.
        """
        if node.closed:
            return None
        if self.draws(node):
            return node
        for child in self._ranked(node):
            found = self.select(child)
            if found is not None:
                return found
        return None

    def _ranked(self, node: SearchNode) -> Iterator[SearchNode]:
        """The open children from the highest score to the lowest; the first drawn among equals."""
        c = self.options.exploration
        if self.options.selection == "uct":
            scores = [uct(child.stats, node.stats, c) for child in node.children]
        else:
            pairs = zip(node.children, node.priors(), strict=True)
            scores = [puct(child.stats, node.stats, prior, c) for child, prior in pairs]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return (node.children[index] for index in order if not node.children[index].closed)

    def draws(self, node: SearchNode) -> int:
        """How many children may be drawn at `node` now, 0 if it must be passed through."""
        if node.closed or self._drained(node):
            return 0
        limit = child_limit(node.stats.visits, self.options.widening_k, self.options.widening_alpha)
        room = limit - len(node.children) - node.pending
        if room <= 0 and node.children and all(child.closed for child in node.children):
            room = 1
        return max(0, min(self.options.children, room))

    def _drained(self, node: SearchNode) -> bool:
        """Whether `node` is not worth another draw."""
        return node.overflowed or node.misses >= self.options.patience or node.unseen < self.options.min_unseen

    def _land(self, landing: Landing[Owner]) -> bool:
        """Take in what an expansion has returned; True if the task is solved."""
        self._return(landing.owner, landing.asked)
        if isinstance(landing.owner, Rollout):
            self._go_on(landing.owner, landing)
            node = landing.owner.node
        else:
            node = landing.owner
            node.overflowed = not landing.thoughts
            for thought in landing.thoughts:
                self._add(node, thought)
        self._close(node)
        return any(thought.solved for thought in landing.thoughts)

    def _return(self, owner: Owner, asked: int) -> None:
        """Take visits in flight back."""
        if isinstance(owner, Rollout):
            owner.node.arrive(1)
        else:
            owner.pending -= asked
            owner.arrive(asked)

    def _add(self, node: SearchNode, thought: Thought) -> None:
        """Put a drawn thought into the tree, and back its value up or send a rollout after it."""
        child, new = node.add(thought)
        if not new:
            self.session.discard(thought)
            if child.stats.visits:
                node.back_up(child.stats.mean)
        elif thought.reward is not None:
            self.session.discard(thought)
            child.back_up(thought.reward)
        elif self.options.value == "rollout":
            child.depart(1)
            self._rollouts.append(Rollout(thought, (*child.path, -1), node=child))
        elif thought.value is not None:
            child.back_up(thought.value)
        else:
            raise InvalidArgument("value", "head", 'the model has no value head; use value="rollout"')

    def _go_on(self, rollout: Rollout, landing: Landing[Owner]) -> None:
        """Take a rollout's next thought; back its reward up if it was the last."""
        rollout.take(landing)
        if not rollout.finished:
            rollout.node.depart(1)
            self._rollouts.append(rollout)
            return
        self._rollout_ends.append(rollout.end)
        rollout.release(self.session)
        rollout.node.back_up(rollout.end.reward or 0.0)

    def _close(self, node: SearchNode) -> None:
        """Close `node` if there is nothing left to try below it, then its parent likewise."""
        for place in node.lineage:
            if not place.closed:
                if place.stats.in_flight or not self._drained(place):
                    return
                if not all(child.closed for child in place.children):
                    return
                place.closed = True
                if place.parent is not None:
                    self.session.discard(place.thought)

    def _places(self) -> Iterator[SearchNode]:
        """The root and all nodes below it, parents first, siblings as they were drawn."""
        places = [self.root] if self.root else []
        while places:
            node = places.pop()
            places.extend(reversed(node.children))
            yield node

    def best(self) -> Thought | None:
        """The best rewarded terminal, rollouts included, else the terminal or leaf of the highest value."""
        leaves = (node.thought for node in self._places() if not node.children)
        return best_of([*leaves, *self._rollout_ends])

    @property
    def nodes(self) -> int:
        """The root and all distinct thoughts; rollouts don't count."""
        return max(1, sum(1 for _ in self._places()))

"""Monte Carlo tree search over thoughts, with several expansions in flight and no barriers between them.

One round selects a node from the root down, draws children there, and backs up what they are worth: the reward of an
end, else the search's estimate or the reward of rollouts. A node is expanded again as its visits grow (progressive
widening), for a model has more continuations than one expansion draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from dendrite.errors import InvalidArgument
from dendrite.search.algorithm import Algorithm, AlgorithmOptions, best_of
from dendrite.search.convergence import merged
from dendrite.search.decision import Decision
from dendrite.search.flights import Flights, Landing
from dendrite.search.mcts_options import MctsOptions
from dendrite.search.rollouts import Owner, Rollout, Rollouts, place_of, take_back
from dendrite.search.selection import Selector, descend
from dendrite.search.session import Session
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode
from dendrite.search.upkeep import Upkeep
from dendrite.search.widening import Widening

__all__ = ["Mcts", "MctsOptions"]


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
        self.trees: list[SearchNode] = []
        """The roots; one, unless `mode` is "root"."""
        self._selector = Selector(options, session.seed)
        self._widening = Widening(options)
        self._decision = Decision(options, self._widening, session.seed)
        self._flights = Flights[Owner](session, options.temperature)
        self._rollouts = Rollouts(session, whole=options.value == "rollout", discount=options.discount)
        self._upkeep = Upkeep(session, options, self._widening, self._flights, self._rollouts)
        self._left: Thought | None = None
        self._nodes_left = 0

    @property
    def root(self) -> SearchNode | None:
        """The root, of the first tree if there are several; None before `run`."""
        return self.trees[0] if self.trees else None

    async def run(self) -> None:
        """Search until solved, out of budget, everything is closed, or an early stop."""
        several = self.options.mode == "root"
        paths = [(index,) for index in range(self.options.trees)] if several else [()]
        self.trees = [SearchNode(self.session.root, path=path) for path in paths]
        try:
            async with self._flights:
                await self._search()
        finally:
            for owner, asked in self._flights.cancelled:
                take_back(owner, asked)
            self._rollouts.drop(lambda node: True)

    async def _search(self) -> None:
        while not self._stops():
            await self._upkeep.make_room(self.trees)
            await self._decide()
            while len(self._flights) < self.options.in_flight and self._start():
                pass
            if not len(self._flights):
                return
            landings = await self._flights.landed()
            solved = [self._land(landing) for landing in landings]
            if any(solved):
                return
            await self._upkeep.prune([place_of(landing.owner) for landing in landings])

    # ---------------------------------------------------------------- select and expand

    def _start(self) -> bool:
        """Start one more expansion; False if all that could be done is under way, or there is no budget now.

        Rollouts under way go first: what they return guides the next selection. Of several trees the one with the
        fewest visits is next.
        """
        if len(self._rollouts):
            return self._rollouts.start(self._flights)
        for root in sorted(self.trees, key=lambda root: root.stats.reach):
            node = self.select(root)
            if node is not None:
                return self._expand(node)
        return False

    def select(self, root: SearchNode) -> SearchNode | None:
        """The node to expand next in a tree, or None: all is closed, or waits for what is in flight."""
        return descend(root, self._ranked, self.draws)

    def _ranked(self, node: SearchNode) -> Iterator[SearchNode]:
        halving = self._decision.halving
        return halving.ranked() if halving is not None and node is self.root else self._selector.ranked(node)

    def draws(self, node: SearchNode) -> int:
        """How many children may be drawn at `node` now, 0 if it must be passed through."""
        if self._is_gumbel(node):
            return 0 if self._decision.halving else self._widening.room(node, self.options.considered)
        return self._widening.draws(node)

    def _is_gumbel(self, node: SearchNode) -> bool:
        return self.options.root == "gumbel" and node is self.root

    def _expand(self, node: SearchNode) -> bool:
        greedy = self.options.greedy_first and not node.expansions and node not in self.trees[1:]
        greedy = greedy and not self._is_gumbel(node)
        draws = 1 if greedy else self.draws(node)
        known = [child.thought for child in node.children]
        asked = self._flights.start(node, node.thought, draws, node.path, node.expansions, greedy=greedy, without=known)
        if asked:
            node.expansions += 1
            node.pending += asked
            node.depart(asked)
            if self._decision.halving is not None:
                self._decision.halving.started(node)
        return asked > 0

    # ---------------------------------------------------------------- evaluate and back up

    def _land(self, landing: Landing[Owner]) -> bool:
        """Take in what an expansion has returned; True if the task is solved."""
        take_back(landing.owner, landing.asked)
        node = place_of(landing.owner)
        if isinstance(landing.owner, Rollout):
            worth = self._rollouts.take(landing.owner, landing)
            if worth is not None:
                self._back_up(node, worth)
        else:
            node.overflowed = not landing.thoughts
            for thought in landing.thoughts:
                self._add(node, thought)
        self._upkeep.close(node)
        self._decision.landed(max((thought.reward or 0.0 for thought in landing.thoughts), default=0.0))
        return any(thought.solved for thought in landing.thoughts)

    def _add(self, node: SearchNode, thought: Thought) -> None:
        """Put a drawn thought into the tree, and back its worth up or send rollouts after it."""
        options = self.options
        child, new = node.add(thought)
        if not new or thought.ended:
            self.session.discard(thought)
        if not new:
            if child.stats.visits:
                self._back_up(node, child.stats.mean * options.discount)
            return
        if options.value == "head" and thought.worth is None:
            raise InvalidArgument("value", "head", 'the model has no value head; use value="rollout"')
        if thought.ended or (options.value == "head" and options.mode != "leaf"):
            self._back_up(child, thought.worth or 0.0)
        else:
            self._rollouts.begin(child, options.rollouts if options.mode == "leaf" else 1)

    def _back_up(self, node: SearchNode, value: float) -> None:
        node.back_up(value, self.options.discount)
        self.session.backed_up(node.thought, value)

    # ---------------------------------------------------------------- decide

    def _stops(self) -> bool:
        limit = self.session.budget.expansions
        started = self.session.meter.expansions + len(self._flights)
        self.stopped = self._decision.stopped(self.trees, None if limit is None else limit - started)
        return self.stopped is not None

    async def _decide(self) -> None:
        root = self.root
        child = self._decision.child(root) if root is not None and self.options.mode != "root" else None
        if child is not None:
            await self.advance_root(child)

    async def advance_root(self, child: SearchNode) -> None:
        """Go on below a child of the root alone: keep its statistics, its KV and what is in flight there.

        All else is released, what is in flight there cancelled, and its visits taken back. The best end found there
        still counts as an answer.

        Raises:
            InvalidArgument: It is no child of the root, or closed; or there are several trees.
        """
        root = self.root
        if root is None or len(self.trees) > 1:
            raise InvalidArgument("mode", self.options.mode, "a root moves in a search of one tree, while it runs")
        if child.parent is not root or child.closed:
            raise InvalidArgument("child", child.path, "must be an open child of the root")
        beside = [other for other in root.children if other is not child]
        ends = [leaf.thought for other in beside for leaf in other.leaves if leaf.thought.ended]
        self._left = best_of([*ends] if self._left is None else [self._left, *ends])
        self._nodes_left += 1 + sum(1 for other in beside for _ in other.places)
        root.arrive(child.stats.in_flight)
        child.parent = None
        self.trees = [child]
        root.closed = True
        self._decision.moved()
        self.session.root_moved(child.thought)
        self.session.discard(root.thought)
        await self._upkeep.give_up(beside)

    # ---------------------------------------------------------------- results

    def best(self) -> Thought | None:
        """The best rewarded end, rollouts included, else the leaf of the highest value.

        Of several trees that have found no reward, it is the best leaf below the most visited of their first thoughts.
        """
        leaves = [leaf.thought for tree in self.trees for leaf in tree.leaves]
        found = best_of([*leaves, *(thought for thought in (self._left, self._rollouts.best) if thought is not None)])
        if self.options.mode != "root" or found is None or found.reward:
            return found
        arms = merged(self.trees)
        chosen = (child for tree in self.trees for child in tree.children if child.thought.step == arms[0].thought.step)
        return best_of(leaf.thought for child in chosen for leaf in child.leaves) if arms else found

    @property
    def nodes(self) -> int:
        """All distinct thoughts, with the root once; rollouts don't count."""
        return 1 + self._nodes_left + sum(sum(1 for _ in tree.places) - 1 for tree in self.trees)

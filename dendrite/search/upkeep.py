"""What a search gives up: subtrees that are done, hopeless, or too much for its memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dendrite.search.flights import Flights
from dendrite.search.mcts_options import MctsOptions
from dendrite.search.pruning import hopeless, least_valuable
from dendrite.search.rollouts import Owner, Rollout, Rollouts, place_of, take_back
from dendrite.search.session import Session
from dendrite.search.tree import SearchNode
from dendrite.search.widening import Widening


class Upkeep:
    """Closes subtrees, calls off what is in flight there, and releases their KV; the statistics stay."""

    def __init__(
        self,
        session: Session,
        options: MctsOptions,
        widening: Widening,
        flights: Flights[Owner],
        rollouts: Rollouts,
    ) -> None:
        self._session = session
        self._options = options
        self._widening = widening
        self._flights = flights
        self._rollouts = rollouts

    def close(self, node: SearchNode) -> None:
        """Close `node` if there is nothing left to try below it, then its parent likewise."""
        for place in node.lineage:
            if not place.closed:
                if place.stats.in_flight or not self._widening.drained(place):
                    return
                if not all(child.closed for child in place.children):
                    return
                place.closed = True
                if place.parent is not None:
                    self._session.discard(place.thought)

    async def give_up(self, subtrees: Sequence[SearchNode]) -> None:
        """Close subtrees whatever there is left to try, call off what is in flight in them, and release them."""
        for subtree in subtrees:
            if not subtree.closed:
                subtree.closed = True
                self._session.discard(subtree.thought, subtree=True)
        await self.call_off()
        for subtree in subtrees:
            if subtree.parent is not None:
                self.close(subtree.parent)
        await self._session.flush()

    async def call_off(self) -> None:
        """Cancel what is in flight, or waits to be, below nodes that are closed, and take its visits back."""
        doomed = [(call, owner) for call, owner in self._flights.in_flight if place_of(owner).cut_off]
        for _, owner in doomed:
            if isinstance(owner, Rollout):
                take_back(owner, 1)
                owner.release(self._session)
            else:
                take_back(owner, owner.pending)  # all that is in flight at a node is doomed: the count comes down to 0
        self._rollouts.drop(lambda node: node.cut_off)
        await self._flights.cancel([call for call, _ in doomed])
        self._flights.cancelled.clear()

    async def prune(self, changed: Iterable[SearchNode]) -> None:
        """Give up the hopeless subtrees that hold the `changed` nodes or their children."""
        limit = self._options.prune_below
        if limit is None:
            return
        found: dict[tuple[int, ...], SearchNode] = {}
        for node in changed:
            for place in (node, *node.children):
                subtree = hopeless(place, limit, self._options.prune_visits)
                if subtree is not None:
                    found[subtree.path] = subtree
        if found:
            await self.give_up(list(found.values()))

    async def make_room(self, trees: Sequence[SearchNode]) -> None:
        """Give up the least valuable tips of the trees while the search can't go on for want of memory alone.

        While anything is in flight there is room to come: what it has reserved is rarely all used.
        """
        while not len(self._flights) and self._session.over_memory():
            tip = least_valuable(trees)
            if tip is None:
                return
            await self.give_up([tip])

"""Search where the caller does the generating: by any model, over any network, with any tool.

`AskTell.ask` says which nodes to expand, the caller makes a child of each and judges it, and `AskTell.tell` takes the
child in. Answers may come in any order: the tree, and all that is asked for later, depend on what was told alone.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Generic

from dendrite.config import MAX_SEED
from dendrite.errors import InvalidArgument
from dendrite.limits import check_whole
from dendrite.search.policies import ROOT, AbMctsA, BestFirst, Place, Policy, StateT, UctPolicy
from dendrite.search.thompson import Tally

__all__ = ["AbMctsA", "Ask", "AskTell", "BestFirst", "Node", "Policy", "UctPolicy"]


@dataclass(frozen=True, slots=True)
class Ask(Generic[StateT]):
    """Leave to make one child of a node.

    `id` is also the child's, once it has been told. `states` are those from the root to the node, whose own is `state`,
    at `depth` steps from the root. `path` is where the child will stand: the numbers of the children from the root,
    which say nothing of timing and may key a sampling seed.
    """

    id: int
    node: int
    state: StateT | None
    depth: int
    states: tuple[StateT | None, ...]
    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node(Generic[StateT]):
    """A node as it is now.

    `visits` and `mean` are of the values of the node and of all nodes below it. `waiting` counts the asks here that are
    to be answered, `in_flight` those and the ones of all nodes below. `finished`: no more children are asked for here.
    `path` is as in `Ask`.
    """

    id: int
    parent: int | None
    state: StateT | None
    value: float | None
    prior: float | None
    path: tuple[int, ...]
    children: tuple[int, ...]
    visits: int
    mean: float
    waiting: int
    in_flight: int
    finished: bool


class AskTell(Generic[StateT]):
    """A tree that is grown from outside.

    It can be pickled at any moment, and then goes on as it would have: `waiting` gives what is still to be answered.
    Two are equal where the same was asked and told. What is in flight counts as the policy says: as in WU-UCT (see
    `dendrite.search.stats`), for what is known and not for what it was worth. States are compared with `==` and not
    looked into. Not for use from several threads at once.
    """

    def __init__(self, policy: Policy, seed: int = 0, root: StateT | None = None) -> None:
        """Plant the tree.

        Args:
            policy: Chooses the nodes to expand.
            seed: Of the policy's draws, 0 .. 2^63 - 1.
            root: State of the root: what there is before the first step.

        Raises:
            InvalidArgument: `policy` is none, or `seed` out of range.
        """
        if not isinstance(policy, Policy):
            raise InvalidArgument("policy", policy, "must be a policy, such as UctPolicy()")
        check_whole("seed", seed, 0, MAX_SEED)
        self.policy = policy
        self.seed = seed
        self._places: dict[int, Place[StateT]] = {ROOT: Place(state=root)}
        self._waiting: dict[int, tuple[int, int]] = {}
        """Asks to be answered: their nodes, and the numbers of the children there."""
        self._given_up: set[int] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AskTell) and self.__dict__ == other.__dict__

    def ask(self, k: int = 1) -> list[Ask[StateT]]:
        """Ask for `k` children, each of the node that the policy chooses with those before it in flight.

        Fewer are asked for where the policy would have all that it could do wait for answers; with nothing in flight,
        an empty list means that everything has been finished.

        Raises:
            InvalidArgument: `k` is not a whole number, at least 0.
        """
        check_whole("k", k, 0)
        asks: list[Ask[StateT]] = []
        while len(asks) < k:
            node = self.policy.select(self._places, self.seed)
            if node is None:
                break
            asks.append(self._depart(node))
        return asks

    def tell(self, ask_id: int, value: float, state: StateT | None = None, *, prior: float | None = None) -> int:
        """Answer an ask with the child that was made, and return its node id, which is the ask's.

        To tell the same again changes nothing.

        Args:
            ask_id: Of the ask.
            value: What the child is worth, in [0, 1].
            state: Whatever the caller needs to go on from it.
            prior: The probability with which it was proposed, in (0, 1], or anything in proportion to that among
                siblings. With `UctPolicy` only, and for every child or none.

        Raises:
            InvalidArgument: There is no such ask, it was given up or has been told otherwise, or `value` or `prior`
                can't be; nothing is changed.
        """
        self._check(ask_id, value, prior)
        child = Place(value=float(value), state=state, prior=None if prior is None else float(prior))
        child.seen = Tally.of(float(value))
        if ask_id not in self._waiting:
            told = self._places[ask_id]
            if (told.value, told.state, told.prior) != (child.value, child.state, child.prior):
                raise InvalidArgument("ask_id", ask_id, "has been told something else")
            return ask_id
        child.parent, number = self._waiting.pop(ask_id)
        parent = self._places[child.parent]
        child.path = (*parent.path, number)
        self._places[ask_id] = child
        insort(parent.children, ask_id)
        self._arrive(child.parent)
        parent.made += child.seen
        for each in self._lineage(child.parent):
            each.seen += child.seen
        return ask_id

    def give_up(self, ask_id: int) -> None:
        """Take an ask back, since its call has failed, say. To give up again changes nothing.

        Raises:
            InvalidArgument: There is no such ask, or it has been told.
        """
        if ask_id in self._given_up:
            return
        if ask_id not in self._waiting:
            known = ask_id in self._places and ask_id != ROOT
            raise InvalidArgument("ask_id", ask_id, "has been told" if known else "is no ask")
        node, _ = self._waiting.pop(ask_id)
        self._given_up.add(ask_id)
        self._arrive(node)
        self._close(node)

    def finish(self, node: int) -> None:
        """Ask for no more children of `node`: it has come to its end. Those that it has are still gone on from.

        Raises:
            InvalidArgument: There is no such node.
        """
        self._place(node).finished = True
        self._close(node)

    def best(self) -> Node[StateT] | None:
        """The node of the highest value, the one asked for first among equals; None before the first."""
        valued = [(-place.value, node) for node, place in self._places.items() if place.value is not None]
        return self.node(min(valued)[1]) if valued else None

    @property
    def waiting(self) -> list[Ask[StateT]]:
        """The asks that are to be answered, in the order in which they were made."""
        return [self._ask(ask_id, *self._waiting[ask_id]) for ask_id in sorted(self._waiting)]

    @property
    def nodes(self) -> list[Node[StateT]]:
        """The root and all children told, in the order in which they were asked for."""
        return [self.node(node) for node in sorted(self._places)]

    @property
    def tree(self) -> dict[int, tuple[int, ...]]:
        """The ids of the children of each node, by its id."""
        return {node: tuple(self._places[node].children) for node in sorted(self._places)}

    def node(self, node: int) -> Node[StateT]:
        """Look a node up; the root is 0.

        Raises:
            InvalidArgument: There is no such node.
        """
        place = self._place(node)
        stats = place.stats
        return Node(
            id=node,
            parent=place.parent,
            state=place.state,
            value=place.value,
            prior=place.prior,
            path=place.path,
            children=tuple(place.children),
            visits=stats.visits,
            mean=stats.mean,
            waiting=place.waiting,
            in_flight=place.in_flight,
            finished=place.finished,
        )

    def _place(self, node: int) -> Place[StateT]:
        if node not in self._places:
            raise InvalidArgument("node", node, "is no node of this tree")
        return self._places[node]

    def _lineage(self, node: int | None) -> Iterator[Place[StateT]]:
        """The node and its ancestors, up to the root."""
        while node is not None:
            place = self._places[node]
            yield place
            node = place.parent

    def _ask(self, ask_id: int, node: int, number: int) -> Ask[StateT]:
        states = tuple(place.state for place in self._lineage(node))[::-1]
        path = (*self._places[node].path, number)
        return Ask(ask_id, node, states[-1], len(states) - 1, states, path)

    def _depart(self, node: int) -> Ask[StateT]:
        place = self._places[node]
        number, place.asked = place.asked, place.asked + 1
        place.waiting += 1
        for each in self._lineage(node):
            each.in_flight += 1
            each.passed += 1
        ask_id = self._places[ROOT].passed
        self._waiting[ask_id] = (node, number)
        return self._ask(ask_id, node, number)

    def _arrive(self, node: int) -> None:
        self._places[node].waiting -= 1
        for each in self._lineage(node):
            each.in_flight -= 1

    def _close(self, node: int) -> None:
        """Close `node` if nothing is left to do there or below, then its parent likewise."""
        for place in self._lineage(node):
            if not place.finished or place.waiting or not all(self._places[child].closed for child in place.children):
                return
            place.closed = True

    def _check(self, ask_id: int, value: float, prior: float | None) -> None:
        if ask_id in self._given_up:
            raise InvalidArgument("ask_id", ask_id, "has been given up")
        if ask_id not in self._waiting and (ask_id == ROOT or ask_id not in self._places):
            raise InvalidArgument("ask_id", ask_id, "is no ask")
        if not _is_number(value) or not 0.0 <= value <= 1.0:
            raise InvalidArgument("value", value, "must be a number in [0, 1]")
        if prior is not None:
            if not self.policy.by_priors:
                raise InvalidArgument("prior", prior, f"{type(self.policy).__name__} does not go by priors")
            if not _is_number(prior) or not 0.0 < prior <= 1.0:
                raise InvalidArgument("prior", prior, "must be a number in (0, 1]")
        first = self._places[ROOT].children[:1]
        if any((self._places[child].prior is None) != (prior is None) for child in first):
            raise InvalidArgument("prior", prior, "must be given for every child or for none")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)

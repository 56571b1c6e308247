"""Drawing children of many nodes as one batch: a level of a search that goes down level by level."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from dendrite.errors import InvalidArgument
from dendrite.search.session import Flights, Landing, Session, Thought


class Place(Protocol):
    """A node of a search tree. `path` holds the child indices from the root; `expansions` numbers its seeds."""

    thought: Thought
    path: tuple[int, ...]
    expansions: int

    @property
    def children(self) -> Sequence[Place]:
        """Its children, as they were drawn."""
        ...


PlaceT = TypeVar("PlaceT", bound=Place)


async def grow(
    session: Session,
    nodes: Sequence[PlaceT],
    flights: Flights[PlaceT],
    wanted: Callable[[PlaceT], int],
    take: Callable[[Landing[PlaceT]], bool],
    *,
    distinct: bool = False,
) -> bool:
    """Draw children of all `nodes` side by side, until none wants more.

    A node has one expansion in flight at a time, so that its children are numbered alike whatever the timing. One
    that got fewer than it wants, since the budget was reserved for others or draws repeated one another, is expanded
    again.

    Args:
        session: Of the search; what has been discarded is released before more is asked for.
        nodes: The level. Where the budget is short the first go first.
        flights: What is in flight; nothing but this level.
        wanted: How many children a node that has nothing in flight wants besides those it has.
        take: Puts what an expansion returned into the tree; True if the task is solved, which ends the level.
        distinct: Draw without replacement: no expansion repeats a child that its node has already.

    Returns:
        Whether the level is complete; else the task is solved or the budget spent.
    """
    waiting = deque(node for node in nodes if wanted(node) > 0)
    while True:
        await session.flush()
        while waiting and _start(waiting[0], flights, wanted(waiting[0]), distinct):
            waiting.popleft()
        if not len(flights):
            return not waiting
        solved = False
        for landing in await flights.landed():
            solved |= take(landing)
            if wanted(landing.owner) > 0:
                waiting.append(landing.owner)
        if solved:
            return False


def _start(node: PlaceT, flights: Flights[PlaceT], draws: int, distinct: bool) -> bool:
    known = [child.thought for child in node.children] if distinct else ()
    if not flights.start(node, node.thought, draws, node.path, node.expansions, without=known):
        return False
    node.expansions += 1
    return True


def places(root: PlaceT) -> Iterator[Place]:
    """The root and all nodes below it, parents first, siblings as they were drawn."""
    stack: list[Place] = [root]
    while stack:
        place = stack.pop()
        stack.extend(reversed(place.children))
        yield place


def leaves(root: PlaceT) -> Iterator[Thought]:
    """The thoughts below which there is nothing, in the order of `places`."""
    return (place.thought for place in places(root) if not place.children)


def value_of(thought: Thought, algorithm: str) -> float:
    """Return the value head's estimate at `thought`, which `algorithm` can't do without.

    Raises:
        InvalidArgument: The model has no value head.
    """
    if thought.value is None:
        raise InvalidArgument("algorithm", algorithm, "goes by values, and the model has no value head")
    return thought.value

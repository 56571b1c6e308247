"""Drawing the children of many nodes side by side: what the searches that keep a frontier have in common."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dendrite.errors import InvalidArgument
from dendrite.search.flights import Flights
from dendrite.search.session import Session
from dendrite.search.thought import Thought


@dataclass(frozen=True, slots=True)
class Distinct:
    """Children that are all different: drawn without replacement, until there are no more to be had.

    There are none once the model gives anything but what was drawn less than the probability `min_unseen`, nor once
    `patience` draws in a row have repeated a child or, if that is None, a whole call has brought nothing new.
    """

    min_unseen: float = 0.01
    patience: int | None = None


DISTINCT = Distinct()
"""The rule unless said otherwise."""


class Site:
    """A thought where it stands in the tree, the children that have come of it, and how many it shall have.

    `path` holds the child indices from the root, which key the sampling seeds. `logprob` is the natural log of the
    model's probability of the whole path after the prompt, at temperature 1, and `length` the path's number of
    generated tokens.
    """

    __slots__ = (
        "_calls",
        "_drawn",
        "_misses",
        "_steps",
        "children",
        "exhausted",
        "length",
        "logprob",
        "path",
        "thought",
        "want",
    )

    def __init__(self, thought: Thought, want: int = 0, *, parent: Site | None = None) -> None:
        self.thought = thought
        self.want = want
        """Children that it shall have."""
        self.path: tuple[int, ...] = (*parent.path, len(parent.children)) if parent else ()
        self.logprob: float = parent.logprob + thought.logprob if parent else 0.0
        self.length: int = parent.length + len(thought.tokens) if parent else 0
        self.children: list[Site] = []
        """Those that have come so far, in the order drawn."""
        self.exhausted = False
        """Whether no more children are to be had, be it that the model's context has no room for one."""
        self._drawn: dict[tuple[int, ...], Thought] = {}
        self._steps: set[str] = set()
        self._calls = 0
        self._misses = 0

    @property
    def missing(self) -> int:
        """How many children are still to be drawn."""
        return 0 if self.thought.ended or self.exhausted else self.want - len(self.children)

    @property
    def solved(self) -> bool:
        """Whether a child solves the task."""
        return any(child.thought.solved for child in self.children)

    def start(self, flights: Flights[Site], distinct: Distinct | None) -> bool:
        """Ask for the children that are missing; False if the budget has no room now."""
        known = self._drawn.values() if distinct is not None else ()
        if not flights.start(self, self.thought, self.missing, self.path, self._calls, without=known):
            return False
        self._calls += 1
        return True

    def take(self, session: Session, thoughts: Sequence[Thought], distinct: Distinct | None) -> list[Site]:
        """Take in what a call has returned, and release what will not be expanded: repeats, and ends of paths.

        With the last of its children the node itself is released: what they need of its KV stays with them.

        Returns:
            The children that are new.
        """
        new = []
        for thought in thoughts:
            self._drawn.setdefault(thought.tokens, thought)
            repeated = distinct is not None and thought.step in self._steps
            self._misses = self._misses + 1 if repeated else 0
            if not repeated:
                child = Site(thought, parent=self)
                self._steps.add(thought.step)
                self.children.append(child)
                new.append(child)
            if repeated or thought.ended:
                session.discard(thought)
        self.exhausted = not thoughts or (distinct is not None and self._drained(distinct, len(new)))
        if not self.missing and self.path:
            session.discard(self.thought)
        return new

    def _drained(self, distinct: Distinct, new: int) -> bool:
        """Whether another call is not worth it, after one that brought so many new children."""
        if (not new) if distinct.patience is None else (self._misses >= distinct.patience):
            return True
        return 1.0 - sum(math.exp(thought.logprob) for thought in self._drawn.values()) < distinct.min_unseen


def _nothing(new: list[Site]) -> None:
    """Leave new children where they are."""


class Draws:
    """Draws many sites' children side by side. No site waits for another: what is missing is asked for at once.

    A site has one call in flight at a time, so that its children are numbered alike whatever the timing. Where the
    budget is short the first go first. `distinct` draws without replacement; None draws each child on its own.
    """

    def __init__(self, session: Session, flights: Flights[Site], distinct: Distinct | None = Distinct()) -> None:
        self._session = session
        self._flights = flights
        self._distinct = distinct
        self._waiting: deque[Site] = deque()
        self._landed: deque[tuple[Site, list[Site]]] = deque()

    def add(self, site: Site) -> None:
        """Have the children of a site drawn."""
        if site.missing:
            self._waiting.append(site)

    async def next(self) -> tuple[Site, list[Site]] | None:
        """Wait until a call has returned: the site that it was for, and its new children. Solutions come first.

        None if nothing is left to be drawn, or the budget has no room for it.
        """
        while not self._landed:
            await self._session.flush()  # pages that have become free are there for what is asked for next
            while self._waiting and self._waiting[0].start(self._flights, self._distinct):
                self._waiting.popleft()
            if not len(self._flights):
                return None
            for landing in await self._flights.landed():
                self._take(landing.owner, landing.thoughts)
        return self._landed.popleft()

    def _take(self, site: Site, thoughts: Sequence[Thought]) -> None:
        new = site.take(self._session, thoughts, self._distinct)
        self.add(site)
        if site.solved:
            self._landed.appendleft((site, new))
        else:
            self._landed.append((site, new))

    async def level(self, sites: Sequence[Site], take: Callable[[list[Site]], None] = _nothing) -> bool:
        """Draw the children of a whole level, and have `take` look at them as they come.

        Returns:
            False if one of them solves the task, or the budget had no room for them all.
        """
        for site in sites:
            self.add(site)
        while (landed := await self.next()) is not None:
            site, new = landed
            take(new)
            if site.solved:
                return False
        return not any(site.missing for site in sites)


def places(root: Site) -> Iterator[Site]:
    """The root and all sites below it, parents first, siblings as they were drawn."""
    stack = [root]
    while stack:
        site = stack.pop()
        stack.extend(reversed(site.children))
        yield site


def leaves(root: Site) -> Iterator[Site]:
    """Those of `places` that have no children."""
    return (site for site in places(root) if not site.children)


def release(session: Session, sites: Iterable[Site]) -> None:
    """Give up the nodes that will not be expanded; ends of paths, and what is exhausted, have been given up already."""
    for site in sites:
        if not site.thought.ended and not site.exhausted:
            session.discard(site.thought)


def worth_of(thought: Thought, option: tuple[str, object]) -> float:
    """What a thought is worth, in [0, 1]: the reward where the search sees one, else the value.

    Raises:
        InvalidArgument: There is neither; names `option`, the field and value that can't do without.
    """
    if thought.worth is None:
        raise InvalidArgument(
            *option,
            "goes by values, and there are none: the model has no value head; "
            'take them from elsewhere (values=), or use beam search with score="logprob", which needs none',
        )
    return thought.worth

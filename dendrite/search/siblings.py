"""Drawing the children of many nodes side by side, distinct ones, as the searches that keep a frontier do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dendrite.errors import InvalidArgument
from dendrite.search.session import Flights, Landing, Session, Thought

LEAST_UNSEEN = 0.01
"""A node draws no more once the model gives anything but its children less than this probability."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A thought and where it stands: the child indices from the root, which key its sampling seeds.

    `logprob` is the natural log of the model's probability of the whole path after the prompt, at temperature 1, and
    `length` the path's number of generated tokens.
    """

    thought: Thought
    path: tuple[int, ...] = ()
    logprob: float = 0.0
    length: int = 0

    def child(self, index: int, thought: Thought) -> Place:
        """Where the child `thought`, the one of this `index`, stands."""
        logprob, length = self.logprob + thought.logprob, self.length + len(thought.tokens)
        return Place(thought, (*self.path, index), logprob, length)


class Siblings:
    """The children of one node: drawn until there are `want` distinct ones, or no more to be had.

    All are asked for in one call. Where some of it are alike, those that lack are drawn again in another, without
    replacement, so that children differ however sure the model is. There are no more to be had once the model gives
    anything else less than `LEAST_UNSEEN`, a call has brought nothing new, or its context has no room.
    """

    __slots__ = ("_calls", "_drawn", "_exhausted", "_steps", "children", "parent", "want")

    def __init__(self, parent: Place, want: int) -> None:
        self.parent = parent
        self.want = want
        self.children: list[Place] = []
        """Those that have come so far, in the order drawn."""
        self._drawn: dict[tuple[int, ...], Thought] = {}
        self._steps: set[str] = set()
        self._calls = 0
        self._exhausted = False

    @property
    def missing(self) -> int:
        """How many children are still to be drawn."""
        return 0 if self._exhausted else self.want - len(self.children)

    @property
    def solved(self) -> bool:
        """Whether a child solves the task."""
        return any(child.thought.solved for child in self.children)

    @property
    def leaves(self) -> list[Place]:
        """The children, or the node itself while it has none."""
        return self.children or [self.parent]

    def start(self, flights: Flights[Siblings]) -> bool:
        """Ask for the children that are missing; False if the budget has no room now."""
        parent, known = self.parent, self._drawn.values()
        if not flights.start(self, parent.thought, self.missing, parent.path, self._calls, without=known):
            return False
        self._calls += 1
        return True

    def take(self, session: Session, landing: Landing[Siblings]) -> None:
        """Take in what a call has returned, and release what will not be expanded: repeats, and ends of paths.

        With the last of its children the node itself is released: what they need of its KV stays with them.
        """
        before = len(self.children)
        for thought in landing.thoughts:
            self._drawn.setdefault(thought.tokens, thought)
            repeated = thought.step in self._steps
            if not repeated:
                self._steps.add(thought.step)
                self.children.append(self.parent.child(len(self.children), thought))
            if repeated or thought.terminal:
                session.discard(thought)
        unseen = 1.0 - sum(math.exp(thought.logprob) for thought in self._drawn.values())
        self._exhausted = len(self.children) == before or unseen < LEAST_UNSEEN
        if not self.missing and self.parent.thought is not session.root:
            session.discard(self.parent.thought)


class Draws:
    """Draws many nodes' children side by side. No node waits for another: what is missing is asked for at once."""

    def __init__(self, session: Session, flights: Flights[Siblings]) -> None:
        self._session = session
        self._flights = flights
        self._waiting: deque[Siblings] = deque()
        self._complete: deque[Siblings] = deque()

    def add(self, siblings: Siblings) -> None:
        """Have these children drawn."""
        self._waiting.append(siblings)

    async def next(self) -> Siblings | None:
        """Wait until some node has all its children, or one of its children solves the task: the latter first.

        None if there is no such node left, or the budget has no room for what is missing.
        """
        while not self._complete:
            await self._session.flush()  # pages that have become free are there for what is asked for next
            while self._waiting and self._waiting[0].start(self._flights):
                self._waiting.popleft()
            if not len(self._flights):
                return None
            for landing in await self._flights.landed():
                self._take(landing)
        return self._complete.popleft()

    async def level(self, siblings: Sequence[Siblings]) -> bool:
        """Draw the children of a whole level; False if that solved the task, or the budget had no room for them all."""
        for each in siblings:
            self.add(each)
        while (complete := await self.next()) is not None:
            if complete.solved:
                return False
        return not any(each.missing for each in siblings)

    def _take(self, landing: Landing[Siblings]) -> None:
        siblings = landing.owner
        siblings.take(self._session, landing)
        if siblings.solved:
            self._complete.appendleft(siblings)
        elif siblings.missing:
            self._waiting.append(siblings)
        else:
            self._complete.append(siblings)


def worth(thought: Thought, option: tuple[str, str]) -> float:
    """What a thought is worth, in [0, 1]: the reward where its path has ended, else the value head's estimate.

    Raises:
        InvalidArgument: There is no value head; names `option`, the field and value that ask for one.
    """
    if thought.reward is not None:
        return thought.reward
    if thought.value is None:
        raise InvalidArgument(*option, 'the model has no value head; beam search with score="logprob" needs none')
    return thought.value


def release(session: Session, places: Iterable[Place]) -> None:
    """Give up the nodes that will not be expanded; ends of paths have been given up already."""
    for place in places:
        if not place.thought.terminal:
            session.discard(place.thought)

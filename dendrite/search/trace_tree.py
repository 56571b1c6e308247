"""The tree of thoughts that a trace tells of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dendrite.search.thought import SOLVED
from dendrite.search.trace_events import ResultEvent, SearchEvent, TraceEvent


@dataclass(frozen=True, slots=True)
class TraceNode:
    """A thought of a traced search, with all that was known of it at the end of the trace.

    `text`, `tokens` and `logprobs` are the thought's own; a root has its prompt's tokens and no text. `value` is the
    value source's estimate, `mean` that of the values backed up over its `visits` (None where there are none), as they
    were backed up, without a discount. `prior` is the model's probability of the thought among its siblings, None where
    a sibling has no log-probabilities. `call` and `time` tell the expansion that made it and when it came.
    """

    id: int
    parent: int | None
    depth: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    value: float | None
    reward: float | None
    ended: bool
    finish_reason: str | None
    pages: int | None
    worker: int | None
    call: int | None
    batch: int | None
    time: float
    children: tuple[int, ...] = ()
    visits: int = 0
    mean: float | None = None
    prior: float | None = None
    released: bool = False

    @property
    def solved(self) -> bool:
        """Whether this is known to be a full solution."""
        return self.reward is not None and self.reward >= SOLVED


@dataclass(frozen=True, slots=True)
class TraceTree:
    """A search as its trace tells it.

    `nodes` maps ids to nodes in the order in which they came; it is empty where the search ended before the prompt was
    computed. A search of several prompts has a tree for each. `root` is the node that the search last went on from, 0
    unless it moved. `result` is None where the search did not finish. `whole` is False where a cut last line was left
    out.
    """

    file: str
    header: SearchEvent
    events: tuple[TraceEvent, ...]
    nodes: Mapping[int, TraceNode]
    root: int
    result: ResultEvent | None
    whole: bool

    @property
    def roots(self) -> list[TraceNode]:
        """The prompts."""
        return [node for node in self.nodes.values() if node.parent is None]

    def path(self, node: int) -> list[TraceNode]:
        """The nodes from the root of the tree to `node`, both included.

        Raises:
            KeyError: There is no such node.
        """
        place: TraceNode | None = self.nodes[node]
        path = []
        while place is not None:
            path.append(place)
            place = None if place.parent is None else self.nodes[place.parent]
        return path[::-1]

    def text(self, node: int) -> str:
        """All that was generated after the prompt, down to the end of `node`."""
        return "".join(place.text for place in self.path(node))

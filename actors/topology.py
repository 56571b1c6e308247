"""Which nodes live where, and the tokens that would rebuild each of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from actors.deltas import Added
from dendrite.errors import UnknownNode


@dataclass(slots=True)
class _Record:
    """One node: what it adds to its parent's path, and what still refers to it."""

    parent: int | None
    base: int
    tokens: tuple[int, ...]
    children: int = 0
    released: bool = False


@dataclass(slots=True)
class _Tree:
    worker: int
    live: int = 0
    nodes: dict[int, _Record] = field(default_factory=dict)


class Topology:
    """Every node that a worker holds, and every released one that a held node descends from."""

    def __init__(self) -> None:
        self._trees: dict[int, _Tree] = {}
        self._live: Counter[int] = Counter()

    @property
    def trees(self) -> int:
        """Trees with at least one held node."""
        return len(self._trees)

    @property
    def records(self) -> int:
        """Nodes on record, held or lineage only."""
        return sum(len(tree.nodes) for tree in self._trees.values())

    def live_nodes(self, worker: int) -> int:
        """Nodes that a worker holds and nobody has released."""
        return self._live[worker]

    def owner(self, tree: int) -> int | None:
        """The worker that holds a tree, None if it holds no node."""
        found = self._trees.get(tree)
        return found.worker if found else None

    def add(self, worker: int, event: Added) -> None:
        """Record a node that `worker` now holds."""
        tree = self._trees.setdefault(event.tree, _Tree(worker))
        tree.nodes[event.node] = _Record(event.parent, event.base, event.tokens)
        if event.parent is not None:
            tree.nodes[event.parent].children += 1
        tree.live += 1
        self._live[worker] += 1

    def release(self, tree: int, node: int) -> bool:
        """Take a held node off its worker. Returns whether it was the last of its tree.

        The record stays while a child needs it as lineage. Releasing a node that is not held changes nothing.
        """
        found = self._trees.get(tree)
        record = found.nodes.get(node) if found else None
        if found is None or record is None or record.released:
            return False
        record.released = True
        found.live -= 1
        self._live[found.worker] -= 1
        if found.live == 0:
            del self._trees[tree]
            return True
        _prune(found.nodes, node)
        return False

    def drop_worker(self, worker: int) -> None:
        """Forget all that a worker held."""
        for tree in [tree for tree, found in self._trees.items() if found.worker == worker]:
            del self._trees[tree]
        del self._live[worker]

    def path_tokens(self, tree: int, node: int) -> tuple[int, ...]:
        """The tokens from the root to the end of a node: its lineage. A prefill of them rebuilds it.

        Raises:
            UnknownNode: the node is neither held nor an ancestor of a held one.
        """
        found = self._trees.get(tree)
        if found is None or node not in found.nodes:
            raise UnknownNode(tree, node)
        spans: list[tuple[int, ...]] = []
        end: int | None = None
        at: int | None = node
        while at is not None:
            record = found.nodes[at]
            spans.append(record.tokens if end is None else record.tokens[: end - record.base])
            end = record.base
            at = record.parent
        return tuple(token for span in reversed(spans) for token in span)


def _prune(nodes: dict[int, _Record], node: int) -> None:
    """Drop a released node without children, then its ancestors that this leaves in the same state."""
    at: int | None = node
    while at is not None and nodes[at].released and nodes[at].children == 0:
        at = nodes.pop(at).parent
        if at is not None:
            nodes[at].children -= 1

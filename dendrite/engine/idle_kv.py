"""KV that can be given up when pages run out, and what has been given up so."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from dendrite.kv.ancestry import droppable
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


class IdleKv:
    """The nodes that have KV and do not run: the lowest priority goes first, then the longest unused.

    Nothing but KV is lost: a node's tokens stay, and `computed` becomes 0.
    """

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._nodes: dict[Node, float] = {}  # priorities, the longest unused first
        self._dropped: dict[Node, int] = {}  # tokens each node had computed before its KV was dropped
        self.dropped_pages = 0

    def add(self, node: Node, priority: float) -> None:
        """Let a node's KV be dropped."""
        self._nodes[node] = priority

    def discard(self, node: Node) -> None:
        """Keep the KV of a node that something works on again. Does nothing where it is not idle."""
        self._nodes.pop(node, None)

    def freed(self, node: Node) -> None:
        """Forget a node whose KV is gone."""
        self._nodes.pop(node, None)
        if gone(node):
            self._dropped.pop(node, None)

    def leaves(self, needed: Collection[Node]) -> Iterator[Node]:
        """Idle nodes, but for those `needed`, whose KV no other one continues: those to drop first come first."""
        for node in sorted(self._nodes, key=self._nodes.__getitem__):
            if node not in needed and not gone(node) and droppable(node):
                yield node

    def drop(self, node: Node) -> None:
        """Drop the KV of a droppable node, idle or not."""
        self._dropped[node] = max(self._dropped.get(node, 0), node.computed)
        self.dropped_pages += len(node.pages)
        self._cache.drop(node)

    def recomputed(self, node: Node, start: int, count: int, *, last: bool) -> int:
        """How many of `count` own tokens from `start` on have lost their KV before; forgets that with the `last`."""
        again = max(0, min(self._dropped.get(node, 0) - start, count))
        if last:
            self._dropped.pop(node, None)
        return again


def gone(node: Node) -> bool:
    """Whether nobody can ask for the node any more; the prefix cache may still keep its KV."""
    return node.released and node.child_count == 0

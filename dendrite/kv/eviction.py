"""Which cached segment goes first when pages run out."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dendrite.kv.node import Node


class LruQueue:
    """Released prompts, the least recently used first.

    A node enters when the last live node below it goes, always after its own cached descendants. So the oldest never
    has cached children, and eviction goes from the leaves up without a search.
    """

    def __init__(self) -> None:
        self._queue: OrderedDict[Node, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, node: Node) -> bool:
        return node in self._queue

    def add(self, node: Node) -> None:
        """Enter `node` as the most recently used."""
        self._queue[node] = None

    def discard(self, node: Node) -> None:
        """Take `node` out, if it is in."""
        self._queue.pop(node, None)

    def oldest(self) -> Node | None:
        """The next to evict."""
        return next(iter(self._queue), None)

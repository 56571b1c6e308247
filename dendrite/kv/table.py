"""Flat page tables, built when a node is first scheduled and extended in place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dendrite.errors import InvariantViolation
from dendrite.kv import tail
from dendrite.kv.node import Node


class PageTables:
    """Builds page tables, and keeps those of the nodes that write.

    At most `limit` are kept, the oldest forgotten first: a finished node needs its table no more, and one that still
    runs gets it built again.
    """

    def __init__(self, page_size: int, limit: int = 1024) -> None:
        self._page_size = page_size
        self._limit = limit
        self._kept: dict[Node, None] = {}

    def of(self, node: Node) -> NDArray[np.int64]:
        """[pages] int64: all pages of the path, up to and with the node's own."""
        first = node.base // self._page_size
        size = first + len(node.pages) if node.pages else -(-node.base // self._page_size)
        table = node._table
        if table is None:
            table = self._build(node, size)
            if node.pages:
                self._keep(node, table)
        return table[:size]

    def extend(self, node: Node, pages: list[int]) -> None:
        """Write `pages`, which `node` has just got as its last ones, into its table if it has one."""
        table = node._table
        if table is None:
            return
        end = node.base // self._page_size + len(node.pages)
        if end > len(table):
            grown = np.empty(2 * end, np.int64)
            grown[: len(table)] = table
            node._table = table = grown
        table[end - len(pages) : end] = pages

    def forget(self, node: Node) -> None:
        """Drop the table of a node whose pages change owner or go."""
        if node._table is not None:
            node._table = None
            del self._kept[node]

    def _keep(self, node: Node, table: NDArray[np.int64]) -> None:
        node._table = table
        self._kept[node] = None
        if len(self._kept) > self._limit:
            self.forget(next(iter(self._kept)))

    def _build(self, node: Node, size: int) -> NDArray[np.int64]:
        page_size = self._page_size
        table = np.empty(size + 4 if node.pages else size, np.int64)
        todo = node.base // page_size  # entries [0, todo) are still to be filled, from ancestors' full pages
        if node.pages:
            table[todo:size] = node.pages
        elif size > todo:
            owner = tail.owner(node, page_size)
            table[todo] = owner.pages[todo - owner.base // page_size]
        ancestor = node.parent
        while todo > 0:
            if ancestor is None:
                raise InvariantViolation(f"no segment holds the first {todo} pages of {node!r}")
            if ancestor._table is not None:
                table[:todo] = ancestor._table[:todo]
                break
            first = ancestor.base // page_size
            if ancestor.pages:
                table[first:todo] = ancestor.pages[: todo - first]
                todo = first
            ancestor = ancestor.parent
        return table

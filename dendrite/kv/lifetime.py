"""From a segment's release to the return of its pages: references, the cached state, and eviction."""

from __future__ import annotations

from collections.abc import Callable

from dendrite.errors import OutOfPages
from dendrite.kv.eviction import LruQueue
from dendrite.kv.node import Node, NodeState
from dendrite.kv.pages import PagePool
from dendrite.kv.prefix import RadixIndex
from dendrite.kv.table import PageTables


class Lifetime:
    """Holds every segment that exists, and lets go of those that nobody needs.

        LIVE ──release──► HELD ──last live child gone──► FREED
                           ▲ │
            found by a     │ │ the same, but a prompt may find it
            new prompt     │ ▼
                          CACHED ──evicted──► FREED

    References are counted by segment: a node's children are its references. All walks are iterative, as a chain of
    released segments may be tens of thousands deep.
    """

    def __init__(self, num_pages: int, page_size: int, on_free: Callable[[Node], None] | None) -> None:
        self.pool = PagePool(num_pages)
        self.index = RadixIndex()
        self.lru = LruQueue()
        self.tables = PageTables(page_size)
        self.roots: dict[Node, None] = {}
        self.cached_pages = 0
        self.evicted_pages = 0
        self._page_size = page_size
        self._on_free = on_free

    def attach(self, root: Node) -> None:
        """Hold the root of a new tree, below the cached segment that it continues if it does."""
        parent = root.parent
        if parent is None:
            self.roots[root] = None
            return
        self._pin(parent)
        if parent._children is None:
            parent._children = {}
        parent._children[root] = None

    def release(self, node: Node) -> None:
        """Give up a node; does nothing the second time."""
        if node._state is NodeState.LIVE:
            node._state = NodeState.HELD
            if node.child_count:
                self.trim(node)
            self._settle(node)

    def release_subtree(self, node: Node) -> None:
        """Release `node` and every node below it in its own tree. Idempotent."""
        found = [node]
        for ancestor in found:  # grows while it is walked: parents come before their children
            found.extend(child for child in ancestor._children or () if child.tree is node.tree)
        for member in reversed(found):
            self.release(member)

    def evict(self, n_pages: int) -> int:
        """Free cached segments, least recently used first, until `n_pages` are freed or none is left.

        Returns:
            Pages freed.
        """
        before = self.pool.num_free
        while self.pool.num_free - before < n_pages:
            node = self.lru.oldest()
            if node is None:
                break
            self.index.remove(node)
            self._settle(node)
        freed = self.pool.num_free - before
        self.evicted_pages += freed
        return freed

    def make_room(self, need: int) -> None:
        """Have `need` free pages, or raise before anything is evicted."""
        short = need - self.pool.num_free
        if short > self.cached_pages:
            raise OutOfPages(need, self.pool.num_free + self.cached_pages)
        if short > 0:
            self.evict(short)

    def trim(self, node: Node) -> None:
        """Free what a released segment holds past the last point that a child continues from."""
        if node._state is not NodeState.HELD or node in self.index or node.computed < len(node.tokens):
            return
        last = max(child.base for child in node._children or ())
        keep = -(-last // self._page_size) - node.base // self._page_size
        if len(node.pages) > keep:
            self.pool.free(node.pages[keep:])
            del node.pages[keep:]
            self.tables.forget(node)

    def notify(self, node: Node) -> None:
        """Tell the engine that a node's KV is gone."""
        if self._on_free is not None:
            self._on_free(node)

    def _pin(self, node: Node | None) -> None:
        """A new live node continues `node`: it and its ancestors are no longer evictable."""
        while node is not None and node._state is NodeState.CACHED:
            node._state = NodeState.HELD
            self.cached_pages -= len(node.pages)
            self.lru.discard(node)
            node = node.parent
            if node is not None:
                node._idle -= 1

    def _settle(self, node: Node | None) -> None:
        """Free or cache a released node that nothing live needs, then look at its parent; never recursive."""
        while node is not None and node._state is not NodeState.LIVE:
            children = node.child_count
            if not children and node not in self.index:
                self._discard(node)
            elif node._state is NodeState.HELD and children == node._idle:
                self._park(node)
            else:
                if children == 1:
                    self.trim(node)
                return
            node = node.parent

    def _park(self, node: Node) -> None:
        node._state = NodeState.CACHED
        self.cached_pages += len(node.pages)
        if node in self.index:
            self.lru.add(node)
        if node.parent is not None:
            node.parent._idle += 1

    def _discard(self, node: Node) -> None:
        parent = node.parent
        if parent is None:
            del self.roots[node]
        else:
            siblings = parent._children
            assert siblings is not None
            del siblings[node]
        if node._state is NodeState.CACHED:
            self.cached_pages -= len(node.pages)
            self.lru.discard(node)
            if parent is not None:
                parent._idle -= 1
        node._state = NodeState.FREED
        self.pool.free(node.pages)
        node.pages = []
        self.tables.forget(node)
        self.notify(node)

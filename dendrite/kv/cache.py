"""Who owns which KV page: admission, copy-on-write of tail pages, the prefix cache, and the return of pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dendrite.errors import InvalidArgument, NodeReleased, OutOfPages
from dendrite.kv import tail
from dendrite.kv.check import check_cache
from dendrite.kv.eviction import LruQueue
from dendrite.kv.node import Node, NodeState
from dendrite.kv.pages import PagePool, TailCopy
from dendrite.kv.prefix import RadixIndex
from dendrite.kv.table import PageTables
from dendrite.kv.tree import Tree


class KvCache:
    """Book-keeping of a pool of KV pages. Holds no tensors, and belongs to one thread.

    Attributes:
        pool: the free list.
        page_size: tokens in a page.
        roots: first nodes of all paths that exist; every node hangs below one of them.
        cached_pages: pages that only released, cached segments own. They are had on demand.
        forks: children made by `fork`.
        cow_copies: tail pages copied because somebody else still read them.
        takeovers: tail pages taken over from a released owner without a copy.
        evicted_pages: pages that cached segments have lost.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int = 16,
        prefix_cache: bool = True,
        on_free: Callable[[Node], None] | None = None,
    ) -> None:
        if page_size not in (8, 16, 32):
            raise InvalidArgument("page_size", page_size, "8, 16 or 32")
        self.pool = PagePool(num_pages)
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self.roots: dict[Node, None] = {}
        self.index = RadixIndex()
        self.lru = LruQueue()
        self.cached_pages = 0
        self.forks = self.cow_copies = self.takeovers = self.evicted_pages = 0
        self._tables = PageTables(page_size)
        self._on_free = on_free

    @property
    def held_pages(self) -> int:
        """Pages that live nodes, or released ones below which something is live, own."""
        return self.pool.num_used - self.cached_pages

    @property
    def available_pages(self) -> int:
        """Pages that `reserve` can have: free, or cached and evictable."""
        return self.pool.num_free + self.cached_pages

    # Making nodes

    def new_tree(
        self,
        tokens: Sequence[int],
        *,
        tree_id: int,
        seed: int,
        detokenize: Callable[[Sequence[int]], str],
    ) -> Node:
        """Make the root of a tree for a prompt.

        Where the prefix cache knows KV for the prompt's first tokens, the root continues the node that owns it:
        `base` counts those tokens and `tokens` holds the rest, which may be empty.

        Raises:
            InvalidArgument: the prompt is empty.
        """
        if len(tokens) == 0:
            raise InvalidArgument("tokens", tokens, "at least one token")
        tree = Tree(tree_id, seed, self, detokenize)
        parent, base = self._cached_prefix(tokens) if self.prefix_cache else (None, 0)
        root = Node(tree, 0, parent, base)
        tree.next_id = 1
        root.tokens = list(tokens[base:])
        if parent is None:
            self.roots[root] = None
        else:
            self._pin(parent)
            if parent._children is None:
                parent._children = {}
            parent._children[root] = None
        return root

    def seal(self, node: Node) -> None:
        """Let later prompts find the computed part of `node`'s path. May be called again when more is computed.

        A path that the index already covers is not indexed twice; such a node is freed on release.

        Raises:
            NodeReleased: the node's pages have been returned.
        """
        self._must_exist(node)
        covered = (node.base // self.page_size + len(node.pages)) * self.page_size
        if self.prefix_cache and 0 < node.computed <= covered - node.base:
            self.index.insert(node.path_tokens[: node.base + node.computed], node)

    # A step: reserve, run, commit

    def reserve(self, node: Node, n: int) -> TailCopy | None:
        """Give `node` slots for the `n` tokens after its computed ones; evicts cached segments if it must.

        Returns:
            A copy that storage must do before this step's writes, or None. Copies of one step do not depend on each
            other; do them in the order in which they were returned, also when their node is dropped meanwhile.

        Raises:
            OutOfPages: not enough pages, even after eviction; nothing was changed.
            InvalidArgument: `n` is negative, or KV that the node continues is not computed (`pending_ancestors`).
            NodeReleased: the node's pages have been returned.
        """
        self._must_exist(node)
        if n < 0:
            raise InvalidArgument("n", n, "at least 0")
        if n == 0:
            return None
        first = node.base // self.page_size
        need = -(-(node.base + node.computed + n) // self.page_size) - first - len(node.pages)
        if need <= 0:
            return None
        if node.pages or node.base % self.page_size == 0:
            if not node.pages:
                self._must_be_computed(node)
            self._ensure(need)
            self._give(node, self.pool.alloc(need))
            return None
        return self._first_write(node, need)

    def commit(self, node: Node, n: int) -> None:
        """Record that the KV of `n` more of `node`'s tokens has been written.

        Raises:
            InvalidArgument: more than was reserved.
            NodeReleased: the node's pages have been returned.
        """
        self._must_exist(node)
        end = (node.base // self.page_size + len(node.pages)) * self.page_size
        if n < 0 or (n > 0 and node.base + node.computed + n > end):
            raise InvalidArgument("n", n, "between 0 and the number of reserved slots")
        node.computed += n
        if node._state is NodeState.HELD:
            self._trim(node)

    def page_table(self, node: Node) -> NDArray[np.int64]:
        """Pages of positions 0 .. base + computed + reserved - 1, in order: [pages] int64.

        A view that stays right until the node reserves more or is dropped; don't write to it. From the node's first
        write on it is kept and extended in place, so a call is O(new pages); before, it is built anew on each call.

        Raises:
            NodeReleased: the node's pages have been returned.
        """
        self._must_exist(node)
        return self._tables.of(node)

    def shared_tokens(self, node: Node) -> int:
        """Tokens of `node`'s context that it reads from pages its ancestors own. O(1)."""
        return node.base - node.base % self.page_size if node.pages else node.base

    def pending_ancestors(self, node: Node) -> list[Node]:
        """Ancestors whose KV `node` continues and which is not all written, the topmost first.

        O(1) where nothing is pending. A released ancestor may be among them: it still may `reserve` and `commit`.
        """
        pending: list[Node] = []
        if node.pages:  # it could not have written on top of KV that was not there
            return pending
        base, ancestor = node.base, node.parent
        while ancestor is not None and base > 0:
            if ancestor.base < base:
                if ancestor.base + ancestor.computed < base:
                    pending.append(ancestor)
                base = ancestor.base
            if ancestor.pages:  # all above it was there when it wrote; what it took over or copied, it has
                break
            ancestor = ancestor.parent
        pending.reverse()
        return pending

    # Giving up

    def release(self, node: Node) -> None:
        """See `Node.release`."""
        if node._state is NodeState.LIVE:
            node._state = NodeState.HELD
            if node.child_count:
                self._trim(node)
            self._settle(node)

    def release_subtree(self, node: Node) -> None:
        """Release `node` and every node below it in its own tree. Idempotent."""
        found = [node]
        for ancestor in found:  # grows while it is walked: parents come before their children
            found.extend(child for child in ancestor._children or () if child.tree is node.tree)
        for member in reversed(found):
            self.release(member)

    def droppable(self, node: Node) -> bool:
        """Whether no descendant has written KV on top of `node`'s own."""
        stack = [child for child in node._children or () if child.base > node.base]
        while stack:
            child = stack.pop()
            if child.pages:
                return False
            stack.extend(child._children or ())
        return True

    def drop(self, node: Node) -> None:
        """Free the pages of a node to make room; `computed` is 0 then, and its tokens stay to compute it again.

        Descendants that have not run yet become pending on it. Where the node had taken a tail page over, the released
        ancestor whose tokens lay in it becomes pending too.

        Raises:
            InvalidArgument: a descendant's KV continues the node's (`droppable`); nothing was changed.
            NodeReleased: the node's pages have been returned.
        """
        self._must_exist(node)
        if not self.droppable(node):
            raise InvalidArgument("node", node, "a node whose KV no descendant continues")
        self.index.remove(node)
        self._tables.forget(node)
        pages = node.pages
        node.pages, node.computed = [], 0
        self.pool.free(pages)
        if pages:
            self._lose_tail(node)
        self._notify(node)

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

    def clear_cache(self) -> None:
        """Free every cached segment. Prompts of live nodes stay known."""
        while self.lru.oldest() is not None:
            self.evict(self.pool.num_pages)

    def check(self) -> None:
        """Verify invariants I1-I4 and I6 over everything held. O(nodes + pages).

        Raises:
            InvariantViolation: one does not hold.
        """
        check_cache(self)

    # Inside

    def _must_exist(self, node: Node) -> None:
        state = node._state
        if state is NodeState.FREED or state is NodeState.CACHED:
            raise NodeReleased(node.tree.id, node.id)

    def _must_be_computed(self, node: Node) -> None:
        if self.pending_ancestors(node):
            raise InvalidArgument("node", node, "a node whose ancestors are computed")

    def _ensure(self, need: int) -> None:
        """Have `need` free pages, or raise before anything is evicted."""
        short = need - self.pool.num_free
        if short > self.cached_pages:
            raise OutOfPages(need, self.available_pages)
        if short > 0:
            self.evict(short)

    def _give(self, node: Node, pages: list[int]) -> None:
        node.pages += pages
        self._tables.extend(node, pages)

    def _first_write(self, node: Node, need: int) -> TailCopy | None:
        """Pages for a node that forked inside a page and writes for the first time."""
        self._must_be_computed(node)
        owner = tail.owner(node, self.page_size)
        index = node.base // self.page_size - owner.base // self.page_size
        source = owner.pages[index]
        if owner not in self.index and tail.only_reader(owner, node, self.page_size):
            self._ensure(need - 1)
            self.pool.free(owner.pages[index + 1 :])  # what the owner wrote after the last fork from it
            del owner.pages[index:]
            self._tables.forget(owner)
            self._give(node, [source, *self.pool.alloc(need - 1)])
            self.takeovers += 1
            return None
        self._ensure(need)
        self._give(node, self.pool.alloc(need))
        self.cow_copies += 1
        return TailCopy(source, node.pages[0], node.base % self.page_size)

    def _lose_tail(self, node: Node) -> None:
        """Count tokens as not computed whose only slots were in the first page that `node` has just given up."""
        start = node.base // self.page_size * self.page_size
        while node.base > start:
            writer = tail.orphaned_writer(node, self.page_size)
            if writer is None:
                return
            writer.computed = max(0, start - writer.base)
            node = writer

    def _cached_prefix(self, tokens: Sequence[int]) -> tuple[Node | None, int]:
        """The node that holds the longest known prefix of `tokens`, and the prefix's length."""
        match = self.index.match(tokens)
        if match is None:
            return None, 0
        node: Node | None = match.node
        base = match.node.base + match.offset
        while node is not None and base > 0:
            if node.base < base:
                # A descendant may have taken the tail page over; what lies in it is out of reach from here.
                base = min(base, (node.base // self.page_size + len(node.pages)) * self.page_size)
                if node.base < base:
                    return node, base
            node = node.parent
        return None, 0

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
                    self._trim(node)
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
        self._tables.forget(node)
        self._notify(node)

    def _trim(self, node: Node) -> None:
        """Free what a released segment holds past the last point that a child continues from."""
        if node._state is not NodeState.HELD or node in self.index or node.computed < len(node.tokens):
            return
        last = max(child.base for child in node._children or ())
        keep = -(-last // self.page_size) - node.base // self.page_size
        if len(node.pages) > keep:
            self.pool.free(node.pages[keep:])
            del node.pages[keep:]
            self._tables.forget(node)

    def _notify(self, node: Node) -> None:
        if self._on_free is not None:
            self._on_free(node)

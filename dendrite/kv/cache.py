"""Who owns which KV page: admission, copy-on-write of tail pages, the prefix cache, and the return of pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dendrite.errors import InvalidArgument, NodeReleased
from dendrite.kv import tail
from dendrite.kv.ancestry import droppable, pending_ancestors
from dendrite.kv.check import check_cache
from dendrite.kv.lifetime import Lifetime
from dendrite.kv.node import Node, NodeState
from dendrite.kv.pages import TailCopy
from dendrite.kv.tree import Tree

_LIVE = NodeState.LIVE


class KvCache:
    """Book-keeping of a pool of KV pages. Holds no tensors, and belongs to one thread.

    Attributes:
        page_size: tokens in a page.
        prefix_cache: whether prompts are found again.
        segments: every segment that exists, until its pages are returned.
        pool: the free list.
        index: the paths that a new prompt may continue.
        forks: children made by `fork`.
        cow_copies: tail pages copied because somebody else still read them.
        takeovers: tail pages taken over from a released owner without a copy.
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
        self.page_size = page_size
        self.prefix_cache = prefix_cache
        self.segments = Lifetime(num_pages, page_size, on_free)
        self.pool = self.segments.pool
        self.index = self.segments.index
        self.forks = self.cow_copies = self.takeovers = 0
        self._tables = self.segments.tables

    @property
    def held_pages(self) -> int:
        """Pages that live nodes, or released ones below which something is live, own."""
        return self.pool.num_used - self.cached_pages

    @property
    def cached_pages(self) -> int:
        """Pages that only released, cached segments own. They are evicted on demand."""
        return self.segments.cached_pages

    @property
    def evicted_pages(self) -> int:
        """Pages that cached segments have lost to others, in all."""
        return self.segments.evicted_pages

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
        self.segments.attach(root)
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

    def pages_needed(self, node: Node, n: int) -> int:
        """Pages that `reserve` would take for the `n` tokens after `node`'s computed ones, at most."""
        size, base = self.page_size, node.base
        return max(0, -(-(base + node.computed + n) // size) - base // size - len(node.pages))

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
        if node._state is not _LIVE:
            self._must_exist(node)
        if n < 1:
            if n < 0:
                raise InvalidArgument("n", n, "at least 0")
            return None
        need = self.pages_needed(node, n)
        if need == 0:
            return None
        if node.pages or node.base % self.page_size == 0:
            if not node.pages:
                self._must_be_computed(node)
            self.segments.make_room(need)
            self._give(node, self.pool.alloc(need))
            return None
        return self._first_write(node, need)

    def commit(self, node: Node, n: int) -> None:
        """Record that the KV of `n` more of `node`'s tokens has been written.

        Raises:
            InvalidArgument: more than was reserved.
            NodeReleased: the node's pages have been returned.
        """
        released = node._state is not _LIVE
        if released:
            self._must_exist(node)
        end = (node.base // self.page_size + len(node.pages)) * self.page_size
        if n < 0 or (n > 0 and node.base + node.computed + n > end):
            raise InvalidArgument("n", n, "between 0 and the number of reserved slots")
        node.computed += n
        if released:
            self.segments.trim(node)

    def unreserve(self, node: Node) -> None:
        """Give back the pages of a live node that none of its computed tokens lies in. Its first page stays."""
        if node._state is _LIVE and node.computed == len(node.tokens):
            keep = max(1, -(-node.length // self.page_size) - node.base // self.page_size)
            self.pool.free(node.pages[keep:])
            del node.pages[keep:]

    def page_table(self, node: Node) -> NDArray[np.int64]:
        """Pages of positions 0 .. base + computed + reserved - 1, in order: [pages] int64.

        A view that stays right until the node reserves more or is dropped; don't write to it. From the node's first
        write on it is kept and extended in place, so a call is O(new pages); before, it is built anew on each call.

        Raises:
            NodeReleased: the node's pages have been returned.
        """
        if node._state is not _LIVE:
            self._must_exist(node)
        return self._tables.of(node)

    def shared_tokens(self, node: Node) -> int:
        """Tokens of `node`'s context that it reads from pages its ancestors own. O(1)."""
        return node.base - node.base % self.page_size if node.pages else node.base

    # Giving up

    def release(self, node: Node) -> None:
        """See `Node.release`."""
        self.segments.release(node)

    def release_subtree(self, node: Node) -> None:
        """See `Node.release`: `node` and every node below it in its own tree."""
        self.segments.release_subtree(node)

    def evict(self, n_pages: int) -> int:
        """Free cached segments, least recently used first, until `n_pages` are freed or none is left.

        Returns:
            Pages freed.
        """
        return self.segments.evict(n_pages)

    def clear_cache(self) -> None:
        """Free every cached segment. Prompts of live nodes stay known."""
        while self.segments.lru:
            self.segments.evict(self.pool.num_pages)

    def drop(self, node: Node) -> None:
        """Free the pages of a node to make room; `computed` is 0 then, and its tokens stay to compute it again.

        Descendants that have not run yet become pending on it. Where the node had taken a tail page over, the released
        ancestor whose tokens lay in it becomes pending too.

        Raises:
            InvalidArgument: a descendant's KV continues the node's (`droppable`); nothing was changed.
            NodeReleased: the node's pages have been returned.
        """
        self._must_exist(node)
        if not droppable(node):
            raise InvalidArgument("node", node, "a node whose KV no descendant continues")
        self.index.remove(node)
        self._tables.forget(node)
        pages = node.pages
        node.pages, node.computed = [], 0
        self.pool.free(pages)
        if pages:
            tail.lose(node, self.page_size)
        self.segments.notify(node)

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
        if pending_ancestors(node):
            raise InvalidArgument("node", node, "a node whose ancestors are computed")

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
            self.segments.make_room(need - 1)
            self.pool.free(owner.pages[index + 1 :])  # what the owner wrote after the last fork from it
            del owner.pages[index:]
            self._tables.forget(owner)
            self._give(node, [source, *self.pool.alloc(need - 1)])
            self.takeovers += 1
            return None
        self.segments.make_room(need)
        self._give(node, self.pool.alloc(need))
        self.cow_copies += 1
        return TailCopy(source, node.pages[0], node.base % self.page_size)

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

"""The KV invariants, verified over everything that a cache holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dendrite.errors import InvariantViolation
from dendrite.kv import tail
from dendrite.kv.ancestry import pending_ancestors
from dendrite.kv.node import Node, NodeState

if TYPE_CHECKING:
    from dendrite.kv.cache import KvCache


def check_cache(cache: KvCache) -> None:
    """Raise InvariantViolation unless I1-I4 and I6 hold (their statements are in the functions below)."""
    nodes = _reachable(cache)
    for node in nodes:
        _check_references(cache, node)
        _check_slots(cache, node)
    cache.pool.check(page for node in nodes for page in node.pages)
    _check_cached(cache, nodes)


def _reachable(cache: KvCache) -> list[Node]:
    """All nodes that exist. I2: no cycles, as each is reached once, from its parent."""
    nodes = list(cache.segments.roots)
    seen = set(nodes)
    for node in nodes:  # grows while it is walked
        for child in node._children or ():
            _require(child.parent is node, child, "is listed as a child by a node that is not its parent")
            _require(child not in seen, child, "is reached twice")
            seen.add(child)
            nodes.append(child)
    for root in cache.segments.roots:
        _require(root.parent is None and root.base == 0, root, "is a first node but continues another")
    return nodes


def _check_references(cache: KvCache, node: Node) -> None:
    """I1: reference counts equal live references. I6: what has been released and is not needed is gone."""
    children = list(node._children or ())
    idle = sum(child._state is NodeState.CACHED for child in children)
    _require(node._idle == idle, node, f"counts {node._idle} cached children and has {idle}")
    _require(node._state is not NodeState.FREED, node, "has been freed but is still referred to")
    needed = len(children) > idle
    if node._state is NodeState.HELD:
        _require(needed, node, "is held by nobody")
    if node._state is NodeState.CACHED:
        _require(not needed, node, "counts as cached but a live node continues it")
        _require(bool(children) or node in cache.index, node, "is cached but no prompt can find it")


def _check_slots(cache: KvCache, node: Node) -> None:
    """I4: every live token maps to exactly one written slot.

    That is: a node has slots for what it computed, every child finds the pages below its base with its parent, and a
    kept page table ends in the node's own pages. Tokens of a released node past its last fork are not live.
    """
    size = cache.page_size
    first = node.base // size
    _require(0 <= node.computed <= len(node.tokens), node, f"has {node.computed} tokens computed")
    if node._state is NodeState.LIVE or node in cache.index:
        slots = (first + len(node.pages)) * size - node.base if node.pages else 0
        _require(slots >= node.computed, node, f"has {node.computed} tokens computed and {slots} slots")
    if node._table is not None:
        kept = node._table[first : first + len(node.pages)].tolist()
        _require(bool(node.pages) and kept == node.pages, node, "has a page table that misses its own pages")
    for child in node._children or ():
        _require(node.base <= child.base <= node.length, child, "starts outside its parent's span")
        _check_continuation(cache, node, child)


def _check_continuation(cache: KvCache, node: Node, child: Node) -> None:
    """The KV that `child` continues is there, or it has none of its own and is pending."""
    size = cache.page_size
    end = node.base + node.computed
    if child.base > end:
        copied = bool(child.pages) and child.base // size * size <= end  # its own copy of the tail is all it needs
        _require(copied or not child.pages, child, "has KV on top of KV that is missing")
        return
    if child.base > node.base:
        full = child.base // size - node.base // size
        _require(len(node.pages) >= full, child, "reads pages that its parent has lost")
    reads_tail = child._state is NodeState.LIVE and not child.pages and child.base % size > 0
    if reads_tail and not pending_ancestors(child):
        tail.owner(child, size)  # raises where the page is nobody's; a released child's may be with a taker


def _check_cached(cache: KvCache, nodes: list[Node]) -> None:
    """The count of cached pages and the queue of evictable nodes match the nodes' states."""
    cached = [node for node in nodes if node._state is NodeState.CACHED]
    pages = sum(len(node.pages) for node in cached)
    if pages != cache.cached_pages:
        raise InvariantViolation(f"{cache.cached_pages} pages count as cached; cached nodes own {pages}")
    waiting = {node for node in cached if node in cache.index}
    if len(waiting) != len(cache.segments.lru) or not all(node in cache.segments.lru for node in waiting):
        raise InvariantViolation("the eviction queue is not the set of cached, indexed nodes")


def _require(holds: bool, node: Node, message: str) -> None:
    if not holds:
        raise InvariantViolation(f"{node!r} {message}")

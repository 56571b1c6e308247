"""Which nodes lose their KV first, and what is known of them afterwards."""

from __future__ import annotations

from dendrite.engine.idle_kv import IdleKv
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


def computed(cache: KvCache, node: Node, tokens: int) -> Node:
    node.tokens += [0] * tokens
    cache.reserve(node, len(node.tokens))
    cache.commit(node, len(node.tokens))
    return node


def test_the_lowest_priority_goes_first_then_the_longest_unused() -> None:
    cache = KvCache(64, 8)
    idle = IdleKv(cache)
    root = cache.new_tree([1], tree_id=1, seed=0, detokenize=lambda tokens: "")
    computed(cache, root, 7)
    old, urgent, new, low = (computed(cache, kid, 8) for kid in root.fork(4))
    for node, priority in ((root, 0.0), (old, 1.0), (urgent, 2.0), (new, 1.0), (low, 0.0)):
        idle.add(node, priority)
    assert list(idle.leaves(())) == [low, old, new, urgent], "the root's KV is continued"
    assert list(idle.leaves({old, low})) == [new, urgent]
    idle.discard(old)
    idle.add(old, 1.0)
    assert list(idle.leaves(())) == [low, new, old, urgent]
    urgent.release()
    assert urgent not in set(idle.leaves(()))


def test_what_was_dropped_is_known_until_it_is_computed_again() -> None:
    cache = KvCache(64, 8)
    idle = IdleKv(cache)
    root = cache.new_tree([1], tree_id=1, seed=0, detokenize=lambda tokens: "")
    computed(cache, root, 19)
    idle.add(root, 0.0)
    idle.drop(root)
    assert (root.computed, root.pages, idle.dropped_pages) == (0, [], 3)
    assert [idle.recomputed(root, 0, 16, last=False), idle.recomputed(root, 16, 10, last=True)] == [16, 4]
    assert idle.recomputed(root, 0, 16, last=True) == 0

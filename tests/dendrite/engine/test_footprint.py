"""Pages that requests need together."""

from __future__ import annotations

from dendrite.config import SamplingParams
from dendrite.engine.footprint import AHEAD_TOKENS, Footprint
from dendrite.engine.generation import Generation
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


def tree(cache: KvCache, prompt: int) -> Node:
    return cache.new_tree(list(range(prompt)), tree_id=1, seed=0, detokenize=lambda tokens: "")


def compute(cache: KvCache, node: Node, tokens: int) -> None:
    cache.reserve(node, tokens)
    cache.commit(node, tokens)


def generation(node: Node, tokens: int) -> Generation:
    return Generation(node, SamplingParams(max_tokens=tokens), 0, 0, 0.0, 0, None, frozenset())


def test_what_is_shared_counts_once_and_what_has_no_kv_counts_too() -> None:
    cache = KvCache(64, 8)
    root = tree(cache, 20)
    one, other = root.fork(2)
    one.tokens += [0] * 8
    found = Footprint(cache)
    found.add(one)
    assert found.pages == 3 + 2, "the root's last page is copied"
    found.add(other)
    assert found.pages == 5
    compute(cache, root, 20)
    compute(cache, one, 8)
    found = Footprint(cache)
    found.add(one)
    assert found.pages == 5


def test_the_next_tokens_of_a_generation_count_up_to_a_bound() -> None:
    cache = KvCache(64, 8)
    root = tree(cache, 16)
    compute(cache, root, 16)
    for tokens, pages in ((1, 1), (8, 1), (9, 2), (10_000, AHEAD_TOKENS // 8)):
        found = Footprint(cache)
        found.add_generation(generation(root.fork()[0], tokens))
        assert found.pages == 2 + pages


def test_what_is_kept_counts_as_it_is_and_not_again_when_it_is_added() -> None:
    cache = KvCache(64, 8)
    root = tree(cache, 16)
    compute(cache, root, 8)
    (kid,) = root.fork()
    found = Footprint(cache)
    found.keep([kid])
    assert found.pages == 1
    found.add_generation(generation(kid, 8))
    assert found.pages == 2 + 1
    found.keep([kid])
    assert found.pages == 3

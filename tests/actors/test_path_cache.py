"""The radix tree of scored paths, with keys that tell which token they are of."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.path_cache import Computed, PathCache, Span

PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=12)


def compute(end: Span) -> None:
    """Give each span of a path that has none what a model would: here its tokens, as keys, values and logits."""
    for span in end.path:
        if span.computed is None:
            tokens = torch.tensor(span.tokens, dtype=torch.float32)
            span.computed = Computed([(tokens.view(1, -1, 1), -tokens.view(1, -1, 1))], tokens.view(-1, 1))


def check(cache: PathCache) -> None:
    spans = set(cache)
    assert cache.tokens == sum(len(span.tokens) for span in spans)
    for span in spans:
        assert span.tokens
        assert spans.issuperset(span.path), "none goes before those below it"
        assert span.parent is not None
        assert span.parent.children[span.tokens[0]] is span
        assert all(first == child.tokens[0] for first, child in span.children.items())
        assert span.computed is not None
        [(keys, values)] = span.computed.keys_values
        assert keys.flatten().tolist() == list(span.tokens)
        assert values.flatten().tolist() == [-token for token in span.tokens]
        assert span.computed.logits.flatten().tolist() == list(span.tokens)


def tokens_of(end: Span) -> tuple[int, ...]:
    return tuple(token for span in end.path for token in span.tokens)


@given(PATHS)
def test_each_prefix_is_kept_once(paths: list[tuple[int, ...]]) -> None:
    cache = PathCache(10**6)
    ends = [cache.add(path) for path in paths]
    assert [tokens_of(end) for end in ends] == paths, "an end stays one, whatever is cut later"
    for end in ends:
        compute(end)
    check(cache)
    prefixes = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    assert cache.tokens == len(prefixes)


@given(PATHS, st.integers(0, 30))
def test_the_paths_used_last_stay(paths: list[tuple[int, ...]], limit: int) -> None:
    """Whatever is left after each path, it is a tree, within the limit, that new paths branch off unharmed."""
    cache = PathCache(limit)
    for path in paths:
        end = cache.add(path)
        compute(end)
        cache.trim()
        assert cache.tokens <= limit
        check(cache)
        if len(path) <= limit:
            assert cache.add(path) is end


def test_the_branch_unused_longest_goes_first_and_what_it_shares_stays() -> None:
    cache = PathCache(5)
    for path in [(1, 2, 3), (1, 2, 4), (1, 2, 3), (1, 2, 5, 6)]:
        compute(cache.add(path))
        cache.trim()
    assert {tokens_of(span) for span in cache} == {(1, 2), (1, 2, 3), (1, 2, 5, 6)}


def test_a_part_that_stays_does_not_keep_the_memory_of_one_that_goes() -> None:
    cache = PathCache(2)
    compute(cache.add((1, 2, 3, 4)))
    compute(cache.add((1, 2)))
    cache.trim()
    [span] = cache
    assert span.computed is not None
    [(keys, _)] = span.computed.keys_values
    assert keys.untyped_storage().nbytes() == 2 * 4


def test_a_cleared_cache_is_empty() -> None:
    cache = PathCache(100)
    compute(cache.add((1, 2)))
    cache.clear()
    assert (list(cache), cache.tokens) == ([], 0)
    assert cache.add((1,)).computed is None

"""Sampling without replacement: the conditional law, and no repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.config import Continuation
from dendrite.engine.engine import Engine
from dendrite.engine.without import Without
from dendrite.errors import InvalidArgument

LAW = {(0, 0): 0.3, (0, 1): 0.2, (1, 0): 0.4, (1, 1): 0.1}
"""A model of two binary tokens."""


def first(token: int) -> float:
    return sum(p for sequence, p in LAW.items() if sequence[0] == token)


def known(sequence: tuple[int, int]) -> Continuation:
    head = first(sequence[0])
    return Continuation(tokens=sequence, logprobs=(math.log(head), math.log(LAW[sequence] / head)))


@given(st.sets(st.sampled_from(sorted(LAW)), max_size=3))
def test_what_is_left_follows_the_law_given_that_it_is_new(seen: set[tuple[int, int]]) -> None:
    left = 1.0 - sum(LAW[sequence] for sequence in seen)
    for sequence, probability in LAW.items():
        watch = Without([known(s) for s in seen])
        drawn = 1.0
        for depth, token in enumerate(sequence):
            shares = watch.log_shares()
            weights = {
                t: (first(t) if depth == 0 else LAW[sequence[0], t] / first(sequence[0])) * math.exp(shares.get(t, 0.0))
                for t in (0, 1)
            }
            drawn *= weights[token] / sum(weights.values())
            watch.push(token)
        if sequence not in seen:
            assert drawn == pytest.approx(probability / left, rel=1e-6)
        elif any(s not in seen for s in LAW):
            assert drawn < 1e-6


def test_the_engine_draws_no_continuation_twice(engine: Engine) -> None:
    root = engine.prefill(list(range(10)))
    found: list[Continuation] = []
    for _ in range(20):
        (kid,) = root.fork()
        engine.decode(kid, max_tokens=2, temperature=0.02, without=tuple(found))
        found.append(Continuation(tokens=tuple(kid.tokens), logprobs=tuple(kid.logprobs)))
        kid.release()
    assert max(Counter(each.tokens for each in found).values()) == 1
    plain = root.fork(20)
    engine.decode(plain, max_tokens=2, temperature=0.02)
    assert max(Counter(tuple(kid.tokens) for kid in plain).values()) > 1


def test_greedy_takes_the_best_that_is_left(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    root = engine.prefill(list(range(10)))
    best, second = root.fork(2)
    engine.decode(best, max_tokens=1, temperature=0.0)
    engine.decode(
        second, max_tokens=1, temperature=0.0, without=(Continuation(tokens=best.tokens, logprobs=best.logprobs),)
    )
    assert second.tokens != best.tokens
    assert second.logprobs[0] < best.logprobs[0]
    assert engine.score(root, second.tokens) == pytest.approx(second.logprobs, abs=1e-4)


def test_no_more_than_all_of_a_token_is_taken_away() -> None:
    """A log-probability above 0 is none; the greatest overflow when they are taken for one."""
    least = Without([Continuation(tokens=(1, 2), logprobs=(0.0, 0.0))]).log_shares()
    assert Without([Continuation(tokens=(1, 2), logprobs=(0.0, 1000.0))]).log_shares() == least


def test_tokens_and_logprobs_must_match(engine: Engine) -> None:
    (kid,) = engine.prefill([1]).fork()
    with pytest.raises(InvalidArgument, match="without"):
        engine.decode(kid, max_tokens=1, without=({"tokens": (1, 2), "logprobs": (0.0,)},))

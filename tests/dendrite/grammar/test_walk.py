"""Rows that move through their grammars together, beside the same rows moved one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.grammar.compiler import CompiledGrammar
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.masks import MaskPool, allowed
from dendrite.grammar.matcher import Matcher
from dendrite.grammar.spec import Grammar
from dendrite.grammar.walk import MaskTable, Walk
from tests.dendrite.grammar.byte_tokens import EOS, VOCABULARY, compiled

WORDS = -(-VOCABULARY // 32)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"enum": [1, 22]}}, "required": ["name"]}
GRAMMARS = {"regex": "(ab|ac)*d?", "lark": 'start: "x" /[0-9]+/ ("," /[0-9]+/)*', "schema": SCHEMA}


@pytest.fixture(scope="module")
def pool() -> Iterator[MaskPool]:
    pool = MaskPool(2, WORDS)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def grammars() -> list[CompiledGrammar]:
    return [
        compiled(regex=GRAMMARS["regex"]),
        compiled(lark=GRAMMARS["lark"]),
        compiled(json_schema=SCHEMA, white_space=False),
    ]


def begin(pool: MaskPool, matchers: dict[int, Matcher], least_forced: int = 99) -> tuple[Walk, MaskTable]:
    masks = np.zeros((max(matchers) + 1, WORDS), np.int32)
    pool.request(matchers.values())
    return pool.walk(matchers, masks, least_forced), masks


def choices(masks: MaskTable, row: int) -> list[int]:
    return allowed([masks[row]], VOCABULARY)[0].nonzero()[:, 0].tolist()


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=6, max_size=6), min_size=1, max_size=14), st.booleans())
@settings(max_examples=60, deadline=None)
def test_masks_and_places_are_those_of_single_steps(
    pool: MaskPool, grammars: list[CompiledGrammar], draws: list[list[int]], forked: bool
) -> None:
    together = {row: Matcher(grammars[row // 2], 0) for row in (0, 2, 4)}
    for row in (1, 3, 5):
        together[row] = together[row - 1].fork() if forked else Matcher(grammars[row // 2], 0)
    alone = {row: Matcher(grammars[row // 2], 0) for row in together}
    walk, masks = begin(pool, together)
    ended: set[int] = set()
    for drawn in draws:
        tokens = [options[pick % len(options)] for row, pick in enumerate(drawn) if (options := choices(masks, row))]
        going = walk.step(tokens)
        for row, matcher in alone.items():
            if row in ended:
                continue
            matcher.advance(tokens[row])
            assert (together[row].taken, together[row].closed) == (matcher.taken, matcher.closed)
            if matcher.finished:
                ended.add(row)
                assert choices(masks, row) == [EOS], "there must be something to sample"
            else:
                pool.request([matcher])
                assert masks[row].tobytes() == matcher.bits.tobytes()
        assert going == (len(ended) < len(alone))
    walk.finish()
    for row, matcher in together.items():
        assert matcher.finished == (row in ended)
        assert walk.taken[row] == matcher.taken
        if row not in ended:
            assert matcher.bits.tobytes() == alone[row].bits.tobytes()


def test_a_row_that_has_stopped_leaves(pool: MaskPool) -> None:
    matchers = {0: Matcher(compiled(regex="a*"), 0), 2: Matcher(compiled(regex="b*"), 0)}
    walk, masks = begin(pool, matchers)
    assert walk.step([97, -9, 98])
    assert walk.step([-1, -9, 98])
    assert choices(masks, 0) == [EOS]
    assert not walk.step([EOS, -9, EOS])
    assert walk.taken == {0: 1, 2: 3}
    assert [matchers[row].closed for row in (0, 2)] == [False, True]


def test_it_pauses_before_a_long_run_of_forced_tokens(pool: MaskPool) -> None:
    matchers = {0: Matcher(compiled(regex="[ab]{3}cdefg[ab]{9}"), 0), 1: Matcher(compiled(regex="[ab]+"), 0)}
    walk, _ = begin(pool, matchers, least_forced=5)
    assert [walk.step([97, 97]) for _ in range(3)] == [True, True, False]
    assert matchers[0].forced(5) == list(b"cdefg")
    shorter, _ = begin(pool, {0: Matcher(compiled(regex="[ab]{3}cdefg[ab]{9}"), 0)}, least_forced=6)
    assert all(shorter.step([97]) for _ in range(3))


@pytest.mark.parametrize("grammar", [Grammar(regex="[ab]*a[ab]{60}"), Grammar(regex="([ab]{2})*a[ab]{60}")])
def test_a_row_that_passes_a_limit_leaves_the_others_alone(
    pool: MaskPool, grammar: Grammar, grammars: list[CompiledGrammar]
) -> None:
    heavy = Matcher(compiled(GrammarLimits(step_lexer_fuel=200), regex=str(grammar.regex)), 0)
    light = Matcher(compiled(regex="[ab]+"), 0)
    walk, masks = begin(pool, {0: heavy, 1: light})
    steps = 0
    while not heavy.failed:
        assert walk.step([ord("ab"[steps % 2]), 97])
        steps += 1
        assert steps < 100
    assert choices(masks, 0) == [EOS]
    assert walk.taken[0] == steps, "its last token was drawn under a good mask, whether the lexer could read it or not"
    assert heavy.taken in (steps, steps - 1)
    assert walk.step([EOS, 97])
    assert walk.taken == {0: steps, 1: steps + 1}
    assert light.taken == steps + 1


def test_nothing_moves_where_no_row_is_left(pool: MaskPool, grammars: list[CompiledGrammar]) -> None:
    matcher = Matcher(compiled(regex="a"), 0)
    walk, _ = begin(pool, {0: matcher})
    assert not walk.step([97])
    assert not walk.step([EOS])
    assert (matcher.taken, matcher.finished) == (1, True)

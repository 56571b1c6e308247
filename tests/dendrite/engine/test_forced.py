"""Tokens that a grammar leaves no choice about: written in chunks, and ended, streamed and cancelled like others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import dendrite
from dendrite.engine import core
from dendrite.grammar import Grammar
from tests.dendrite.engine.grammars import FLAG, FLAGS, PROMPT
from tests.dendrite.engine.host_loop import HostLoop


def test_forced_tokens_are_written_in_chunks(make_tiny_engine: Callable[..., dendrite.Engine]) -> None:
    engine = make_tiny_engine()
    root = engine.prefill(PROMPT)
    before = engine.stats()
    kids = root.fork(3)
    engine.decode(kids, max_tokens=60, grammar=FLAG)
    after = engine.stats()
    assert {kid.text for kid in kids} <= FLAGS
    for kid in kids:
        assert kid.finish_reason == "stop"
        assert kid.logprobs[1:8] == [0.0] * 7, '"flag":'
        assert len(kid.logprobs) == len(kid.tokens)
        assert kid.raw_logprobs == pytest.approx(engine.score(root, kid.tokens), abs=1e-4)
        assert kid.value == pytest.approx(engine.value(kid), abs=1e-5)
    sampled = after.decode_tokens - before.decode_tokens
    assert sampled + after.forced_tokens == sum(len(kid.tokens) for kid in kids)
    assert after.prefill_tokens == before.prefill_tokens
    assert sampled == 3 * 3, "the brace, and two choices"
    assert after.steps - before.steps < 12


def test_forced_tokens_are_streamed_too(tiny_engine: dendrite.Engine) -> None:
    (kid,) = tiny_engine.prefill(PROMPT).fork()
    events = list(tiny_engine.stream(kid, max_tokens=60, grammar=FLAG))
    assert [event.token for event in events] == kid.tokens
    assert [event.logprob for event in events] == kid.logprobs
    assert [event.finish_reason for event in events if event.finish_reason] == ["stop"]


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_limit_holds_inside_forced_tokens(tiny_engine: dendrite.Engine, limit: int) -> None:
    (kid,) = tiny_engine.prefill(PROMPT).fork()
    tiny_engine.decode(kid, max_tokens=limit, grammar=FLAG)
    assert (len(kid.tokens), kid.finish_reason) == (limit, "length")
    (rest,) = kid.fork()
    tiny_engine.decode(rest, max_tokens=60, grammar=FLAG)
    assert kid.text + rest.text in FLAGS


def test_only_long_runs_of_forced_tokens_leave_the_bursts(
    make_tiny_engine: Callable[..., dendrite.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "make_device_loop", HostLoop)
    engine = make_tiny_engine()
    root = engine.prefill(PROMPT)
    (kid,), (long,) = root.fork(), root.fork()
    engine.decode(kid, max_tokens=60, grammar=FLAG)
    assert engine.stats().forced_tokens == 0
    engine.decode(long, max_tokens=60, grammar=Grammar(regex="(a|b)cdefghijklmnopqrstuvw"))
    assert engine.stats().forced_tokens == 21
    assert long.raw_logprobs == pytest.approx(engine.score(root, long.tokens), abs=1e-4)
    assert long.finish_reason == "stop"


def test_a_stop_text_is_seen_inside_forced_tokens(tiny_engine: dendrite.Engine) -> None:
    (kid,) = tiny_engine.prefill(PROMPT).fork()
    tiny_engine.decode(kid, max_tokens=60, stop="fl", grammar=FLAG)
    assert (kid.text, kid.finish_reason) == ('{"fl', "stop")
    (rest,) = kid.fork()
    tiny_engine.decode(rest, max_tokens=60, grammar=FLAG)
    assert kid.text + rest.text in FLAGS


def test_a_generation_can_be_cancelled_while_its_tokens_are_forced(tiny_engine: dendrite.Engine) -> None:
    (kid,) = tiny_engine.prefill(PROMPT).fork()
    (generation,) = tiny_engine.submit(kid, max_tokens=60, grammar=FLAG)
    while len(kid.tokens) < 2:
        tiny_engine.step()
    tiny_engine.cancel(generation)
    while tiny_engine.has_work:
        tiny_engine.step()
    (rest,) = kid.fork()
    tiny_engine.decode(rest, max_tokens=60, grammar=FLAG)
    assert kid.text + rest.text in FLAGS

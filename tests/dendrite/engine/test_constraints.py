"""Generation under grammars through the engine: what is masked, where documents go on, and who fails."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

import dendrite
from dendrite import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.errors import GrammarError, InvalidArgument
from dendrite.grammar import Grammar
from dendrite.grammar.limits import GrammarLimits
from tests.dendrite.engine.grammars import DIGITS, FLAG, FLAGS, HEAVY, PROMPT

EOS = 256


def test_a_document_ends_where_nothing_can_follow(tiny_engine: dendrite.Engine) -> None:
    kids = tiny_engine.prefill(PROMPT).fork(6)
    tiny_engine.decode(kids, max_tokens=20, grammar=DIGITS)
    for kid in kids:
        assert kid.text.isdigit()
        assert len(kid.tokens) == 3, "no end-of-sequence token is wasted on it"
        assert kid.finish_reason == "stop"
        assert kid.error is None


def test_the_sequence_ends_only_where_the_grammar_accepts(tiny_engine: dendrite.Engine) -> None:
    kids = tiny_engine.prefill(PROMPT).fork(12)
    tiny_engine.decode(kids, max_tokens=40, grammar=Grammar(regex="(ab)*"))
    assert any(kid.finish_reason == "stop" for kid in kids)
    for kid in kids:
        text = kid.text
        assert text == "ab" * (len(text) // 2) + "a" * (len(text) % 2)
        if kid.finish_reason == "stop":
            assert kid.tokens[-1] == EOS
            assert len(text) % 2 == 0


def test_an_end_that_is_ignored_still_ends_the_document(tiny_engine: dendrite.Engine) -> None:
    kids = tiny_engine.prefill(PROMPT).fork(8)
    tiny_engine.decode(kids, max_tokens=40, ignore_eos=True, grammar=Grammar(regex="a*"))
    assert all(EOS not in kid.tokens[:-1] for kid in kids)
    assert {kid.finish_reason for kid in kids if kid.tokens[-1] == EOS} == {"stop"}


def test_logprobs_are_reported_under_the_mask_and_raw(tiny_engine: dendrite.Engine) -> None:
    root = tiny_engine.prefill(PROMPT)
    kids = root.fork(3)
    tiny_engine.decode(kids, max_tokens=20, grammar=DIGITS)
    first = {digit: tiny_engine.score(root, [ord(digit)])[0] for digit in "0123456789"}
    total = torch.tensor(list(first.values())).logsumexp(0).item()
    for kid in kids:
        assert kid.raw_logprobs == pytest.approx(tiny_engine.score(root, kid.tokens), abs=1e-4)
        assert kid.logprobs[0] == pytest.approx(first[chr(kid.tokens[0])] - total, abs=1e-4)
        assert all(masked > raw for masked, raw in zip(kid.logprobs, kid.raw_logprobs, strict=True))


def test_forks_go_on_from_any_token(tiny_engine: dendrite.Engine) -> None:
    (kid,) = tiny_engine.prefill(PROMPT).fork()
    tiny_engine.decode(kid, max_tokens=60, grammar=FLAG)
    for at in range(len(kid.tokens)):
        twins = kid.at(at).fork(2)
        tiny_engine.decode(twins, max_tokens=60, grammar=FLAG)
        assert {kid.text[:at] + twin.text for twin in twins} <= FLAGS


def test_nothing_follows_a_document_but_its_end(tiny_engine: dendrite.Engine) -> None:
    (kid,) = tiny_engine.prefill(PROMPT).fork()
    tiny_engine.decode(kid, max_tokens=60, grammar=DIGITS)
    (after,) = kid.fork()
    tiny_engine.decode(after, max_tokens=60, grammar=DIGITS)
    assert (after.tokens, after.finish_reason) == ([EOS], "stop")
    (again,) = kid.fork()
    tiny_engine.decode(again, max_tokens=60, grammar=DIGITS, grammar_tokens=0)
    assert again.text.isdigit(), "a second document"


def test_grammar_and_tokens_are_enough_to_go_on_elsewhere(
    make_tiny_engine: Callable[..., dendrite.Engine], tiny_engine: dendrite.Engine
) -> None:
    (kid,) = tiny_engine.prefill(PROMPT).fork()
    tiny_engine.decode(kid, max_tokens=12, grammar=FLAG)
    other = make_tiny_engine(prefix_cache=False)
    rebuilt = other.prefill(kid.path_tokens)
    twins = rebuilt.fork(3)
    other.decode(twins, max_tokens=60, grammar=FLAG, grammar_tokens=12)
    assert {kid.text + twin.text for twin in twins} <= FLAGS


def test_each_node_of_a_batch_has_its_own_grammar_or_none(tiny_engine: dendrite.Engine) -> None:
    kids = tiny_engine.prefill(PROMPT, seed=3).fork(4)
    params = [
        SamplingParams(max_tokens=60, grammar=DIGITS),
        SamplingParams(max_tokens=60, grammar=FLAG),
        SamplingParams(max_tokens=9),
        SamplingParams(max_tokens=60, grammar=Grammar(lark='start: "x" | "y" start')),
    ]
    for kid, each in zip(kids, params, strict=True):
        tiny_engine.submit(kid, each)
    while tiny_engine.has_work:
        tiny_engine.step()
    assert kids[0].text.isdigit()
    assert kids[1].text in FLAGS
    assert set(kids[3].text) <= {"x", "y"}
    assert not kids[2].raw_logprobs
    (alone,) = tiny_engine.prefill(PROMPT, seed=3).fork(3)[2:]
    tiny_engine.decode(alone, max_tokens=9)
    assert alone.tokens == kids[2].tokens, "it draws as if the others were not there"


def test_filters_and_penalties_act_on_what_the_grammar_allows(tiny_engine: dendrite.Engine) -> None:
    kids = tiny_engine.prefill(PROMPT).fork(6)
    tiny_engine.decode(kids[:2], max_tokens=9, temperature=0.0, grammar=DIGITS)
    tiny_engine.decode(kids[2:4], max_tokens=9, top_k=1, grammar=DIGITS)
    tiny_engine.decode(kids[4:], max_tokens=9, top_p=0.5, min_p=0.1, repetition_penalty=2.0, grammar=DIGITS)
    assert all(kid.text.isdigit() and len(kid.text) == 3 for kid in kids)
    assert len({kid.text for kid in kids[:4]}) == 1


def test_a_branch_that_passes_a_limit_fails_alone(make_tiny_engine: Callable[..., dendrite.Engine]) -> None:
    engine = make_tiny_engine(grammar_limits=GrammarLimits(step_lexer_fuel=200))
    root = engine.prefill(PROMPT)
    bad, good, free = root.fork(3)
    for node, grammar in ((bad, HEAVY), (good, DIGITS), (free, None)):
        engine.submit(node, SamplingParams(max_tokens=70, grammar=grammar, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert bad.finish_reason == "error"
    assert isinstance(bad.error, GrammarError)
    assert "lexer" in bad.error.reason
    assert 0 < len(bad.tokens) < 70
    assert good.text.isdigit()
    assert (len(free.tokens), free.finish_reason) == (70, "length")
    engine.decode(bad, max_tokens=3)
    assert (bad.finish_reason, bad.error) == ("length", None)


def test_a_limit_that_one_branch_passes_holds_for_no_other_of_its_grammar(
    make_tiny_engine: Callable[..., dendrite.Engine],
) -> None:
    engine = make_tiny_engine(grammar_limits=GrammarLimits(step_lexer_fuel=200))
    grammar = Grammar(lark='start: "x" /[ab]*a[ab]{60}/ | "y" /[0-9]{40}/')
    bad, good = engine.prefill("x").fork()[0], engine.prefill("y").fork()[0]
    engine.decode([bad, good], max_tokens=70, grammar=grammar, grammar_tokens=1)
    assert bad.finish_reason == "error"
    assert (len(good.tokens), good.finish_reason) == (40, "stop")
    assert good.text.isdigit()
    (later,) = engine.prefill("y").fork()
    engine.decode(later, max_tokens=70, grammar=grammar, grammar_tokens=1)
    assert (len(later.tokens), later.finish_reason) == (40, "stop")


def test_tokens_that_do_not_fit_fail_on_their_node_alone(tiny_engine: dendrite.Engine) -> None:
    good, bad = tiny_engine.prefill("12").fork()[0], tiny_engine.prefill("ab").fork()[0]
    tiny_engine.decode([good, bad], max_tokens=9, grammar=DIGITS, grammar_tokens=2)
    assert good.text.isdigit()
    assert len(good.text) == 1
    assert (bad.finish_reason, bad.tokens) == ("error", [])
    assert isinstance(bad.error, GrammarError)
    with pytest.raises(InvalidArgument, match="grammar_tokens=9: at most the 2 tokens"):
        tiny_engine.decode(good.parent.fork() if good.parent else [], grammar=DIGITS, grammar_tokens=9)


async def test_a_call_all_of_whose_nodes_fail_at_once_says_so_too(
    make_tiny_engine: Callable[..., dendrite.Engine],
) -> None:
    engine = make_tiny_engine()
    root = engine.prefill("ab")
    (kid,) = root.fork()
    engine.decode(kid, max_tokens=9, grammar=DIGITS, grammar_tokens=2)
    assert (kid.finish_reason, type(kid.error)) == ("error", GrammarError)
    backend = AsyncEngine(engine)
    branches = await backend.expand(root, 2, SamplingParams(max_tokens=9, grammar=DIGITS, grammar_tokens=2))
    assert [(branch.finish_reason, type(branch.error)) for branch in branches] == [("error", GrammarError)] * 2
    await backend.aclose()


def test_a_grammar_that_cannot_be_used_is_refused_before_anything_runs(tiny_engine: dendrite.Engine) -> None:
    kids = tiny_engine.prefill(PROMPT).fork(2)
    with pytest.raises(GrammarError, match=r"\$\.properties\.a"):
        tiny_engine.decode(kids, grammar=Grammar(json_schema={"properties": {"a": {"not": {}}}}))
    assert not tiny_engine.has_work
    assert [kid.tokens for kid in kids] == [[], []]


def test_a_model_without_a_tokenizer_has_no_grammars(tiny_engine: dendrite.Engine) -> None:
    plain = dendrite.Engine(tiny_engine._runner.decoder)
    with pytest.raises(InvalidArgument, match="tokenizer"):
        plain.decode(plain.prefill([1, 2]).fork(), grammar=DIGITS)


def test_preempted_documents_are_finished_all_the_same(make_tiny_engine: Callable[..., dendrite.Engine]) -> None:
    engine = make_tiny_engine(kv_tokens=208)
    roots = [engine.prefill(f"{PROMPT}{at}") for at in range(6)]
    kids = [root.fork()[0] for root in roots]
    engine.decode(kids, max_tokens=120, grammar=Grammar(regex="[0-9]{100}"))
    assert all(len(kid.text) == 100 and kid.finish_reason == "stop" for kid in kids)
    assert engine.stats().preemptions > 0
    for root, kid in zip(roots, kids, strict=True):
        assert len(kid.logprobs) == len(kid.raw_logprobs) == len(kid.tokens)
        assert kid.raw_logprobs == pytest.approx(engine.score(root, kid.tokens), abs=1e-4)


async def test_expand_reports_a_failed_child_and_keeps_the_others(
    make_tiny_engine: Callable[..., dendrite.Engine],
) -> None:
    engine = make_tiny_engine(grammar_limits=GrammarLimits(step_lexer_fuel=200))
    backend = AsyncEngine(engine, threaded=True)
    root = await backend.prefill(PROMPT)
    failed = await backend.expand(root, 2, SamplingParams(max_tokens=70, grammar=HEAVY, ignore_eos=True))
    good = await backend.expand(root, 3, SamplingParams(max_tokens=70, grammar=FLAG))
    assert {branch.finish_reason for branch in failed} == {"error"}
    assert all(isinstance(branch.error, GrammarError) for branch in failed)
    for branch in good:
        assert json.loads(branch.text).keys() == {"flag", "other"}
        assert len(branch.raw_logprobs) == len(branch.logprobs)
        assert branch.error is None
    await backend.release(root, subtree=True)
    await backend.aclose()

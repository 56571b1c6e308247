"""The engine against recomputation: forks, inner forks, scores, preemption, cancellation, bad input."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors

from dendrite.config import SamplingParams
from dendrite.engine.engine import Engine
from dendrite.errors import ContextOverflow, InvalidArgument, ModelError, NodeReleased, OutOfPages
from dendrite.kv.node import Node
from dendrite.model.decoder import Decoder
from tests.tiny_model import write_tiny_model

Recompute = Callable[[list[int]], torch.Tensor]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(97), k=length)


def assert_logprobs_match(node: Node, recompute: Recompute) -> None:
    """I5: what was recorded on the edge equals a fresh prefill of the same path."""
    path = node.path_tokens
    logits = recompute(path)
    for at, (token, logprob) in enumerate(zip(node.tokens, node.logprobs, strict=True), start=node.base):
        fresh = torch.log_softmax(logits[at - 1], -1)[token].item()
        assert logprob == pytest.approx(fresh, abs=1e-4)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 100])
def test_greedy_decoding_is_the_argmax_of_recomputation(engine: Engine, recompute: Recompute, length: int) -> None:
    root = engine.prefill(prompt_of(length))
    (kid,) = root.fork()
    engine.decode(kid, max_tokens=20, temperature=0.0)
    assert kid.tokens == recompute(kid.path_tokens)[length - 1 : -1].argmax(-1).tolist()
    assert kid.finish_reason == "length"
    assert_logprobs_match(kid, recompute)


@pytest.mark.parametrize("page_size", [8, 16, 32])
def test_a_forked_path_equals_its_recomputation(
    make_engine: Callable[..., Engine], recompute: Recompute, page_size: int
) -> None:
    engine = make_engine(page_size=page_size)
    level = [engine.prefill(prompt_of(37))]
    for depth in range(4):
        kids = [kid for node in level for kid in node.fork(3)]
        engine.decode(kids, max_tokens=5 + depth, temperature=2.0)
        level = kids[depth::4]
        for kid in kids:
            assert_logprobs_match(kid, recompute)
    assert engine.stats().prefill_tokens == 37
    assert engine.stats().recomputed_tokens == 0


def test_children_of_an_inner_token_equal_recomputation_and_share_one_retip(
    engine: Engine, recompute: Recompute
) -> None:
    root = engine.prefill(prompt_of(20))
    (kid,) = root.fork()
    engine.decode(kid, max_tokens=30)
    branches = kid.at(11).fork(4)
    engine.decode(branches, max_tokens=6, temperature=3.0)
    assert len({tuple(branch.tokens) for branch in branches}) > 1
    for branch in branches:
        assert branch.path_tokens[:31] == kid.path_tokens[:31]
        assert_logprobs_match(branch, recompute)
    assert engine.stats().retips == 1


def test_a_node_forked_while_it_decodes_goes_on_undisturbed(engine: Engine, recompute: Recompute) -> None:
    def run(fork_at: int | None) -> tuple[list[int], list[Node]]:
        root = engine.prefill(prompt_of(18), seed=5)
        (kid,) = root.fork()
        forked: list[Node] = []
        for count, _ in enumerate(engine.stream(kid, max_tokens=24), start=1):
            if count == fork_at:
                forked = kid.fork(3)
        return kid.tokens, forked

    undisturbed, _ = run(None)
    for fork_at in (3, 14, 15):
        tokens, forked = run(fork_at)
        assert tokens == undisturbed
        engine.decode(forked, max_tokens=8)
        for fork in forked:
            assert_logprobs_match(fork, recompute)


def test_decoding_on_continues_where_it_stopped(engine: Engine, recompute: Recompute) -> None:
    (kid,) = engine.prefill(prompt_of(9)).fork()
    for _ in range(3):
        engine.decode(kid, max_tokens=7)
    assert len(kid.tokens) == 21
    assert_logprobs_match(kid, recompute)


def test_chunked_prefill_equals_one_prefill(make_engine: Callable[..., Engine], recompute: Recompute) -> None:
    engine = make_engine(max_batch_tokens=32, max_running=16)
    kids = engine.prefill(prompt_of(203)).fork(2)
    engine.decode(kids, max_tokens=4)
    for kid in kids:
        assert_logprobs_match(kid, recompute)


def test_prefill_and_decode_share_steps(make_engine: Callable[..., Engine], recompute: Recompute) -> None:
    engine = make_engine(max_batch_tokens=32, max_running=16)
    first = engine.prefill(prompt_of(10, 1)).fork(3)
    generations = engine.submit(first, max_tokens=20)
    root, _ = engine.submit_prefill(prompt_of(150, 2))
    late = root.fork(2)
    generations += engine.submit(late, max_tokens=5)
    before = engine.stats().steps
    while engine.has_work:
        engine.step()
    assert engine.stats().steps - before < 20 + 5 + 7
    assert all(generation.finish_reason == "length" for generation in generations)
    for kid in first + late:
        assert_logprobs_match(kid, recompute)


def test_the_same_seed_gives_the_same_tokens_and_siblings_differ(make_engine: Callable[..., Engine]) -> None:
    def sampled(seed: int | None, engine_seed: int = 0) -> list[list[int]]:
        engine = make_engine(seed=engine_seed)
        kids = engine.prefill(prompt_of(12), seed=seed).fork(6)
        engine.decode(kids, max_tokens=10, temperature=1.5)
        return [kid.tokens for kid in kids]

    assert sampled(4) == sampled(4)
    assert sampled(None) == sampled(None)
    assert sampled(4) != sampled(5)
    assert sampled(None, 1) != sampled(None, 2)
    assert len({tuple(tokens) for tokens in sampled(4)}) == 6


def test_a_seed_in_the_settings_ignores_which_node_it_is(engine: Engine) -> None:
    root = engine.prefill(prompt_of(12))
    first, second = root.fork(4), root.fork(4)
    engine.decode(first, max_tokens=10, seed=9)
    engine.decode(second, max_tokens=10, seed=9)
    assert [kid.tokens for kid in first] == [kid.tokens for kid in second]


def test_stop_ids_end_a_generation_and_are_kept(engine: Engine) -> None:
    kids = engine.prefill(prompt_of(12)).fork(20)
    stops = list(range(0, 97, 5))
    engine.decode(kids, max_tokens=200, stop_token_ids=tuple(stops), temperature=3.0)
    assert {kid.finish_reason for kid in kids} == {"stop"}
    for kid in kids:
        assert kid.tokens[-1] in stops
        assert not set(kid.tokens[:-1]) & set(stops)


def test_penalties_change_what_is_generated(engine: Engine) -> None:
    plain, punished = engine.prefill(prompt_of(12)).fork(2)
    engine.decode(plain, max_tokens=60, temperature=0.0)
    engine.decode(punished, max_tokens=60, temperature=0.0, frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(punished.tokens)) > len(set(plain.tokens))
    (later,) = punished.fork()
    engine.decode(later, max_tokens=10, temperature=0.0, repetition_penalty=5.0)
    assert len(set(later.tokens)) == 10


def test_scores_equal_the_log_softmax_of_recomputation(engine: Engine, recompute: Recompute) -> None:
    (kid,) = engine.prefill(prompt_of(21)).fork()
    engine.decode(kid, max_tokens=13)
    held = engine.stats().pages_held
    for continuation in (prompt_of(1, 7), prompt_of(25, 8)):
        path = kid.path_tokens + continuation
        fresh = torch.log_softmax(recompute(path), -1)
        expected = [fresh[kid.length + i - 1, token].item() for i, token in enumerate(continuation)]
        assert engine.score(kid, continuation) == pytest.approx(expected, abs=1e-4)
    assert engine.stats().pages_held == held
    assert kid.child_count == 0


@pytest.mark.parametrize("length", [1, 2, 16, 40])
def test_what_is_appended_goes_on_like_what_was_generated(engine: Engine, recompute: Recompute, length: int) -> None:
    (kid,) = engine.prefill(prompt_of(21)).fork()
    engine.decode(kid, max_tokens=13)
    given = engine.append(kid, prompt_of(length, 7))
    assert given.parent is kid
    assert given.finish_reason == "given"
    assert given.tokens == prompt_of(length, 7)
    assert_logprobs_match(given, recompute)
    branches = given.fork(3)
    engine.decode(branches, max_tokens=5, temperature=2.0)
    for branch in branches:
        assert_logprobs_match(branch, recompute)
    assert engine.stats().recomputed_tokens == 0
    assert engine.stats().decode_tokens == 13 + 3 * 5


def test_what_cannot_be_appended_leaves_the_tree_as_it_was(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(kv_tokens=64)
    root = engine.prefill(prompt_of(20))
    held = engine.stats().pages_held
    with pytest.raises(ContextOverflow):
        engine.append(root, prompt_of(60))
    assert root.child_count == 0
    assert engine.stats().pages_held == held
    root.release()
    with pytest.raises(NodeReleased):
        engine.append(root, [1])


def test_a_text_within_a_sequence_begins_none(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing("<|end|> $A", special_tokens=[("<|end|>", 256)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with Engine.from_pretrained(folder, device="cpu", kv_tokens=256) as engine:
        root = engine.prefill("a")
        assert root.tokens == [256, ord("a")]
        given = engine.append(root, "bc")
        assert given.tokens == [ord("b"), ord("c")]
        assert given.value is not None
        assert given.value == pytest.approx(engine.value(given), abs=1e-5)
        assert engine.score(root, "bc") == pytest.approx(given.logprobs, abs=1e-5)
        root.release(subtree=True)


def test_a_prompt_finds_its_cached_prefix(engine: Engine, recompute: Recompute) -> None:
    engine.prefill(prompt_of(50)).release()
    again = engine.prefill([*prompt_of(50), 1, 2, 3])
    assert (again.base, again.tokens, again.length) == (50, [1, 2, 3], 53)
    assert engine.stats().prefill_tokens == 53
    stats = engine.stats()
    assert (stats.cached_tokens, stats.prompts, stats.prompt_hits) == (50, 2, 1)
    same = engine.prefill(prompt_of(50))
    assert same.tokens == []
    kids = again.fork(2) + same.fork(2)
    engine.decode(kids, max_tokens=5)
    for kid in kids:
        assert_logprobs_match(kid, recompute)
    half = engine.prefill([*prompt_of(50)[:23], 5])
    assert half.base >= 23


def test_without_the_prefix_cache_nothing_stays(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(prefix_cache=False)
    engine.prefill(prompt_of(50)).release()
    stats = engine.stats()
    assert (stats.pages_held, stats.pages_cached, stats.pages_free) == (0, 0, stats.pages_total)


def test_preemption_loses_nothing(make_engine: Callable[..., Engine], recompute: Recompute) -> None:
    """More generations than the pool can hold at once: all finish, with the tokens they have with room to spare."""

    def run(kv_tokens: int) -> tuple[list[list[int]], Engine, list[Node]]:
        engine = make_engine(kv_tokens=kv_tokens)
        roots = [engine.prefill(prompt_of(30, seed), seed=seed) for seed in range(4)]
        kids = [kid for root in roots for kid in root.fork(4)]
        engine.decode(kids, max_tokens=40, temperature=1.0)
        return [kid.tokens for kid in kids], engine, kids

    roomy, _, _ = run(4096)
    tight, engine, kids = run(400)
    assert tight == roomy
    assert engine.stats().preemptions > 0
    assert engine.stats().recomputed_tokens > 0
    for kid in kids[::5]:
        assert_logprobs_match(kid, recompute)


def test_roots_that_decode_and_forks_of_running_nodes_survive_pressure(make_engine: Callable[..., Engine]) -> None:
    def run(kv_tokens: int) -> tuple[list[list[int]], int]:
        engine = make_engine(kv_tokens=kv_tokens, page_size=8, max_batch_tokens=24, max_running=8)
        roots = [engine.submit_prefill(prompt_of(20, seed), seed=seed)[0] for seed in range(4)]
        for root in roots:
            engine.submit(root, max_tokens=50, temperature=1.0)
        for _ in range(15):
            engine.step()
        kids = [kid for root in roots for kid in root.at(len(root.tokens) // 2).fork(2)]
        engine.submit(kids, max_tokens=20, temperature=1.0, seed=3)
        while engine.has_work:
            engine.step()
        nodes = roots + kids
        return [node.path_tokens for node in nodes], engine.stats().preemptions

    roomy, _ = run(4096)
    tight, preemptions = run(224)  # all four begin, but could not end together
    assert sorted(map(len, tight[:4])) == [70] * 4
    assert [path[:70] for path in tight[:4]] == [path[:70] for path in roomy[:4]]
    assert preemptions > 0


def test_idle_leaves_give_way_and_come_back(make_engine: Callable[..., Engine], recompute: Recompute) -> None:
    engine = make_engine(kv_tokens=320)
    root = engine.prefill(prompt_of(17))
    kids = root.fork(12)
    for kid in kids:
        engine.decode(kid, max_tokens=40)
    grandchildren = [kid.fork()[0] for kid in kids]
    for grandchild in grandchildren:
        engine.decode(grandchild, max_tokens=5)
        assert_logprobs_match(grandchild, recompute)
    assert engine.stats().recomputed_tokens > 0
    root.release(subtree=True)
    assert engine.stats().pages_held == 0


def test_idle_leaves_do_not_keep_others_from_running_together(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(kv_tokens=640, page_size=16)
    root = engine.prefill(prompt_of(17))
    for idle in root.fork(13):
        engine.decode(idle, max_tokens=40)
    assert engine.stats().pages_free < 8
    before = engine.stats().steps
    engine.decode(root.fork(8), max_tokens=14)
    assert engine.stats().steps - before < 20


def test_a_generation_that_can_never_fit_fails_alone(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(kv_tokens=128, prefix_cache=False)
    with pytest.raises(ContextOverflow) as overflow:
        engine.prefill(prompt_of(128))
    assert (overflow.value.tokens, overflow.value.limit) == (129, 128)
    root = engine.prefill(prompt_of(100))
    (kid,) = root.fork()
    with pytest.raises(OutOfPages):  # the live root keeps its tail page: 128 tokens need one page more than there is
        engine.decode(kid, max_tokens=100)
    assert (kid.length, kid.computed) == (112, 12)
    other = engine.prefill(prompt_of(120, 1))  # takes the pages of the idle tree, which keeps its tokens
    assert (kid.length, kid.computed) == (112, 0)
    other.release()
    root.release(subtree=True)
    assert engine.stats().pages_held == 0
    engine.prefill(prompt_of(120, 1)).release()


def test_the_context_limit_ends_a_generation(engine: Engine) -> None:
    (kid,) = engine.prefill(prompt_of(505)).fork()
    engine.decode(kid, max_tokens=100)
    assert (kid.length, kid.finish_reason) == (512, "length")
    with pytest.raises(ContextOverflow):
        engine.decode(kid, max_tokens=1)


def test_cancelling_keeps_what_was_generated_and_leaves_the_rest_alone(engine: Engine) -> None:
    kids = engine.prefill(prompt_of(12), seed=1).fork(3)
    generations = engine.submit(kids, max_tokens=30)
    for _ in range(10):
        engine.step()
    engine.cancel(generations[1])
    while engine.has_work:
        engine.step()
    assert [len(kid.tokens) for kid in kids] == [30, 10, 30]
    assert generations[1].finish_reason == "cancelled"
    engine.decode(kids[1], max_tokens=20)
    assert len(kids[1].tokens) == 30


def test_closing_a_stream_cancels_it(engine: Engine) -> None:
    kids = engine.prefill(prompt_of(12)).fork(2)
    stream = engine.stream(kids, max_tokens=30)
    events = [next(stream) for _ in range(6)]
    stream.close()
    assert not engine.has_work
    assert [event.token for event in events if event.node is kids[0]] == kids[0].tokens


def test_releasing_a_node_in_mid_decode_ends_its_generation(engine: Engine) -> None:
    kids = engine.prefill(prompt_of(12)).fork(2)
    generations = engine.submit(kids, max_tokens=30)
    for _ in range(5):
        engine.step()
    kids[0].release()
    while engine.has_work:
        engine.step()
    assert [generation.finish_reason for generation in generations] == ["cancelled", "length"]


def test_releasing_everything_frees_every_page(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(prefix_cache=False)
    roots = [engine.prefill(prompt_of(30 + i, i)) for i in range(5)]
    for root in roots:
        kids = root.fork(5)
        engine.decode(kids, max_tokens=20)
        kids[0].release()
    for root in roots:
        root.release(subtree=True)
        root.release(subtree=True)
    stats = engine.stats()
    assert (stats.pages_held, stats.pages_free) == (0, stats.pages_total)
    assert engine._runner.tips.used == 0


def test_higher_priority_is_served_first(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_running=2)
    kids = engine.prefill(prompt_of(12)).fork(6)
    low = engine.submit(kids[:4], max_tokens=10, priority=0.0)
    high = engine.submit(kids[4:], max_tokens=10, priority=1.0)
    while not all(generation.done for generation in high):
        engine.step()
    assert not any(generation.done for generation in low)


def test_shared_ratio_counts_what_ancestors_hold(engine: Engine) -> None:
    kids = engine.prefill(prompt_of(160)).fork(8)
    engine.decode(kids, max_tokens=10)
    assert 0.9 < engine.stats().shared_ratio < 1.0


def test_bad_input_names_field_and_limit(engine: Engine, make_engine: Callable[..., Engine]) -> None:
    root = engine.prefill(prompt_of(5))
    other = make_engine().prefill(prompt_of(5))
    cases: list[tuple[str, Callable[[], object]]] = [
        ("prompt", lambda: engine.prefill([])),
        ("prompt", lambda: engine.prefill([97])),
        ("prompt", lambda: engine.prefill([-1])),
        ("prompt", lambda: engine.prefill("text without a tokenizer")),
        ("seed", lambda: engine.prefill([1], seed=-1)),
        ("seed", lambda: engine.prefill([1], seed=2**64)),
        ("continuation", lambda: engine.score(root, [])),
        ("continuation", lambda: engine.append(root, [])),
        ("continuation", lambda: engine.append(root, [97])),
        ("nodes", lambda: engine.decode([])),
        ("nodes", lambda: engine.decode([root, root])),
        ("nodes", lambda: engine.decode(other)),
        ("nodes", lambda: engine.decode(root.at(0).fork())),
        ("max_tokens", lambda: engine.decode(root, max_tokens=0)),
        ("temperature", lambda: engine.decode(root, temperature=-1.0)),
        ("top_p", lambda: engine.decode(root, top_p=0.0)),
        ("colour", lambda: engine.decode(root, colour="red")),
        ("stop", lambda: engine.decode(root, stop="")),
        ("stop", lambda: engine.decode(root, stop="x")),
        ("stop_token_ids", lambda: engine.decode(root, stop_token_ids=(97,))),
        ("logit_bias", lambda: engine.decode(root, logit_bias={97: 1.0})),
        ("without", lambda: engine.decode(root, without=[{"tokens": (1, 97), "logprobs": (-1.0, -1.0)}])),
    ]
    for field, call in cases:
        with pytest.raises(InvalidArgument) as error:
            call()
        assert error.value.field.startswith(field), error.value
    assert root.tokens == prompt_of(5)
    root.release()
    with pytest.raises(NodeReleased):
        engine.decode(root)
    with pytest.raises(NodeReleased):
        root.fork()


def test_a_node_decodes_once_at_a_time(engine: Engine) -> None:
    (kid,) = engine.prefill(prompt_of(5)).fork()
    engine.submit(kid, max_tokens=4)
    with pytest.raises(InvalidArgument, match="decoded already"):
        engine.submit(kid, max_tokens=4)


def test_settings_are_checked(decoder: Decoder) -> None:
    with pytest.raises(InvalidArgument, match="page_size"):
        Engine.from_pretrained("countdown", page_size=12)
    with pytest.raises(ModelError, match="nowhere"):
        Engine.from_pretrained("/nowhere")


def test_params_and_settings_combine(engine: Engine) -> None:
    (kid,) = engine.prefill(prompt_of(5)).fork()
    engine.decode(kid, SamplingParams(max_tokens=9, temperature=0.0), max_tokens=3)
    assert len(kid.tokens) == 3

"""Plans made when pages run out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dendrite.config import EngineConfig, SamplingParams
from dendrite.engine import core
from dendrite.engine.engine import Engine
from dendrite.engine.generation import Compute, Generation
from dendrite.engine.plan import Plan
from dendrite.engine.requests import Requests
from dendrite.engine.scheduler import Scheduler
from dendrite.errors import OutOfPages
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from tests.dendrite.engine.host_loop import HostLoop


def generation(node: Node, priority: float, order: int) -> Generation:
    return Generation(node, SamplingParams(), 0, 0, priority, order, None, frozenset())


def test_no_page_is_the_target_of_two_copies_in_one_step() -> None:
    cache = KvCache(2 + 3, 8)
    requests = Requests(cache)
    scheduler = Scheduler(cache, requests, EngineConfig(page_size=8, kv_tokens=64), longest_context=64)
    root = cache.new_tree(list(range(12)), tree_id=1, seed=0, detokenize=lambda tokens: "")
    cache.reserve(root, 12)
    cache.commit(root, 12)
    root.tip = 0
    low, high, highest = root.fork(3)
    for order, (node, priority) in enumerate(((low, 0.0), (high, 1.0), (highest, 2.0))):
        requests.add(generation(node, priority, order))
    seen: set[int] = set()
    for _ in range(3):
        plan = scheduler.schedule()
        targets = [copy.dst_page for copy in plan.copies]
        assert len(targets) == len(set(targets))
        seen.update(targets)
    assert seen


def test_a_step_without_work_is_empty(make_engine: Callable[..., Engine]) -> None:
    result = make_engine().step()
    assert (result.events, result.generations, result.computes) == ([], [], [])


def test_what_continues_kv_that_cannot_be_computed_fails_with_it() -> None:
    cache = KvCache(1 + 3, 8)
    requests = Requests(cache)
    scheduler = Scheduler(cache, requests, EngineConfig(page_size=8, kv_tokens=64), longest_context=64)
    root = cache.new_tree(list(range(40)), tree_id=1, seed=0, detokenize=lambda tokens: "")
    (child,) = root.fork()
    child.tokens.extend(range(8))
    job = Compute(child)
    requests.compute(job)
    for _ in range(3):
        assert scheduler.schedule().empty
    assert isinstance(job.error, OutOfPages)
    requests.take_ended()
    assert not requests.has_work


def running(cache: KvCache, max_burst: int, *wanted: int) -> tuple[Requests, Scheduler]:
    """A generation of so many tokens on each child of a computed root, and their scheduler."""
    requests = Requests(cache)
    settings = EngineConfig(page_size=8, kv_tokens=64)
    scheduler = Scheduler(cache, requests, settings, longest_context=64, max_burst=max_burst)
    root = cache.new_tree(list(range(8)), tree_id=1, seed=0, detokenize=lambda tokens: "")
    cache.reserve(root, 8)
    cache.commit(root, 8)
    root.tip = 0
    for order, (node, tokens) in enumerate(zip(root.fork(len(wanted)), wanted, strict=True)):
        params = SamplingParams(max_tokens=tokens)
        requests.add(Generation(node, params, 0, 0, 0.0, order, None, frozenset(), pace=max_burst))
    return requests, scheduler


def test_a_burst_starts_small_and_ends_with_the_shortest_generation() -> None:
    cache = KvCache(64, 8)
    requests, scheduler = running(cache, 16, 30, 12)
    bursts = []
    while requests.has_work:
        plan = scheduler.schedule()
        bursts.append(plan.burst)
        for member in plan.decodes:
            assert member.node.base + len(member.node.pages) * 8 >= member.node.length + plan.burst
            member.node.tokens += [0] * plan.burst
            cache.commit(member.node, plan.burst)
            member.produced += plan.burst
            if member.produced == member.params.max_tokens:
                member.finish_reason = "length"
        requests.finished([member for member in plan.decodes if member.done])
    assert bursts == [1, 4, 7, 16, 2]


def go_on(cache: KvCache, plan: Plan) -> None:
    """As if a plan's decodes had run."""
    for member in plan.decodes:
        member.node.tokens += [0] * plan.burst
        cache.commit(member.node, plan.burst)
        member.produced += plan.burst


def test_a_burst_shrinks_to_one_token_where_pages_are_short() -> None:
    cache = KvCache(1 + 1 + 8, 8)
    _, scheduler = running(cache, 16, 50, 50)  # there are pages for 32 tokens of each
    for expected in (1, 4, 16, 1):
        plan = scheduler.schedule()
        assert plan.burst == expected
        assert len(plan.decodes) == 2
        go_on(cache, plan)


def test_a_burst_takes_the_pages_of_idle_nodes() -> None:
    cache = KvCache(1 + 1 + 8, 8)
    requests, scheduler = running(cache, 16, 30, 30)
    root = requests.waiting[0][1].node.parent
    assert root is not None
    idle = root.fork()[0]
    idle.tokens += [0] * 32
    cache.reserve(idle, 32)
    cache.commit(idle, 32)
    requests.filled(idle)
    for expected in (1, 4, 16):
        plan = scheduler.schedule()
        assert plan.burst == expected
        go_on(cache, plan)
    assert (idle.computed, scheduler.preemptions) == (0, 0)


def test_those_that_could_not_end_together_do_not_begin_together() -> None:
    cache = KvCache(1 + 1 + 9, 8)
    requests, scheduler = running(cache, 1, 30, 30, 30)
    at_once = []
    while requests.has_work:
        plan = scheduler.schedule()
        at_once.append(len(plan.decodes))
        go_on(cache, plan)
        ended = [member for member in plan.decodes if member.produced == member.params.max_tokens]
        for member in ended:
            member.finish_reason = "length"
        requests.finished(ended)
    assert at_once == [2] * 30 + [1] * 30
    assert scheduler.preemptions == 0


def test_no_more_run_than_may_when_a_step_has_failed() -> None:
    """One generation waits for its hidden state while the others, whose step has failed, wait to run again."""
    cache = KvCache(64, 8)
    settings = EngineConfig(page_size=8, kv_tokens=64, max_running=2)
    requests = Requests(cache)
    scheduler = Scheduler(cache, requests, settings, longest_context=64)
    root = cache.new_tree(list(range(8)), tree_id=1, seed=0, detokenize=lambda tokens: "")
    cache.reserve(root, 8)
    cache.commit(root, 8)
    root.tip = 0
    for order, node in enumerate([*root.fork(), *root.at(4).fork(), *root.fork(2)]):
        requests.add(generation(node, 0.0, order))
    plan = scheduler.schedule()
    assert (len(plan.decodes), len(plan.retips)) == (1, 1)
    requests.interrupted(plan.decodes)
    for _ in range(2):
        plan = scheduler.schedule()
        assert len(plan.decodes) <= 2
        for retip in plan.retips:
            for waiting in retip.waiting:
                waiting.tip = 1
            requests.tipped(retip)
    assert len(plan.decodes) == 2


def test_one_that_waits_may_take_the_pages_of_others_that_wait_beside_prompts_that_never_end() -> None:
    cache = KvCache(1 + 10, 8)
    requests, scheduler = running(cache, 1, 32, 32)
    for _, waiting in requests.waiting:
        waiting.node.tokens += [0] * 32
        cache.reserve(waiting.node, 32)
        cache.commit(waiting.node, 32)
        waiting.node.tip = 1
        requests.filled(waiting.node)
    prompt = cache.new_tree(list(range(8, 16)), tree_id=2, seed=0, detokenize=lambda tokens: "")
    requests.compute(Compute(prompt))
    first, second = (waiting.node for _, waiting in requests.waiting)
    assert [member.node for member in scheduler.schedule().decodes] == [first]
    assert second.computed == 0


def deep_tree(make_engine: Callable[..., Engine], segments: int, tokens: int) -> tuple[Engine, list[list[Node]]]:
    """Four chains of segments below one root, none of which has its KV, and pages for two chains at a time."""
    pages = 1 + 2 * (segments + 1) * tokens // 8 + 8
    engine = make_engine(page_size=8, kv_tokens=8 * pages, max_batch_tokens=tokens, max_running=8)
    root = engine.prefill(list(range(8)))
    draws = random.Random(0)
    chains: list[list[Node]] = []
    for _ in range(4):
        chains.append([root])
        for _ in range(segments):
            (node,) = chains[-1][-1].fork()
            node.tokens += draws.choices(range(30), k=tokens)
            node.logprobs += [0.0] * tokens
            chains[-1].append(node)
    return engine, chains


@pytest.mark.parametrize("bursts", [False, True])
def test_paths_that_do_not_fit_together_are_computed_one_after_the_other(
    bursts: bool, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each takes the pages of what the others have computed, for ever."""
    if bursts:
        monkeypatch.setattr(core, "make_device_loop", HostLoop)
    engine, chains = deep_tree(make_engine, segments=4, tokens=16)
    generations = engine.submit([kid for chain in chains for kid in chain[-1].fork(2)], max_tokens=20, ignore_eos=True)
    steps = 0
    while engine.has_work and steps < 1000:
        engine.step()
        steps += 1
    assert all(len(generation.node.tokens) == 20 for generation in generations)
    written = engine.stats().prefill_tokens + engine.stats().recomputed_tokens
    assert written <= 8 + 4 * 4 * 16, "every chain is computed once"

"""Plans made when pages run out."""

from __future__ import annotations

from collections.abc import Callable

from dendrite.config import EngineConfig, SamplingParams
from dendrite.engine.engine import Engine
from dendrite.engine.generation import Compute, Generation
from dendrite.engine.scheduler import Scheduler
from dendrite.errors import OutOfPages
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


def generation(node: Node, priority: float, order: int) -> Generation:
    return Generation(node, SamplingParams(), 0, 0, priority, order, None, frozenset())


def test_no_page_is_the_target_of_two_copies_in_one_step() -> None:
    cache = KvCache(2 + 3, 8)
    scheduler = Scheduler(cache, EngineConfig(page_size=8, kv_tokens=64), longest_context=64)
    root = cache.new_tree(list(range(12)), tree_id=1, seed=0, detokenize=lambda tokens: "")
    cache.reserve(root, 12)
    cache.commit(root, 12)
    root.tip = 0
    low, high, highest = root.fork(3)
    for order, (node, priority) in enumerate(((low, 0.0), (high, 1.0), (highest, 2.0))):
        scheduler.add(generation(node, priority, order))
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
    scheduler = Scheduler(cache, EngineConfig(page_size=8, kv_tokens=64), longest_context=64)
    root = cache.new_tree(list(range(40)), tree_id=1, seed=0, detokenize=lambda tokens: "")
    (child,) = root.fork()
    child.tokens.extend(range(8))
    job = Compute(child)
    scheduler.compute(job)
    for _ in range(3):
        assert scheduler.schedule().empty
    assert isinstance(job.error, OutOfPages)
    scheduler.take_ended()
    assert not scheduler.has_work

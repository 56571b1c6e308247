"""What becomes of requests on nodes that are released."""

from __future__ import annotations

from collections.abc import Callable

from dendrite.engine.engine import Engine
from dendrite.errors import Cancelled


def test_a_prompt_and_what_was_to_follow_it_may_be_released_before_they_are_computed(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    root, prompt = engine.submit_prefill([1, 2, 3])
    child, job = engine.submit_append(root, [4])
    child.release()
    root.release()
    ended = engine.step().computes
    assert prompt is not None
    assert set(ended) == {prompt, job}
    assert all(isinstance(each.error, Cancelled) for each in ended)
    assert not engine.has_work


def test_nothing_is_kept_of_a_node_that_was_released_while_it_ran(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    root = engine.prefill([1, 2, 3])
    kid = root.fork()[0]
    [running] = engine.submit(kid, max_tokens=8)
    engine.step()
    root.release(subtree=True)
    assert engine.step().generations == [running]
    engine.cache.clear_cache()
    idle = engine._requests.idle
    assert (idle._nodes, idle._dropped) == ({}, {})

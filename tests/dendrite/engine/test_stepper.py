"""A step that fails half-way leaves its nodes as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.engine import core
from dendrite.engine.constraints import Constraints
from dendrite.engine.engine import Engine
from dendrite.engine.runner import ModelRunner
from dendrite.model.decoder import Decoder
from tests.dendrite.engine.grammars import DIGITS, PROMPT
from tests.dendrite.engine.host_loop import HostLoop


def interrupted_run(after: bool) -> Callable[..., None]:
    """`ModelRunner.run` with Ctrl-C before or after it."""
    run = ModelRunner.run

    def press(runner: ModelRunner, batch: ForwardBatch) -> None:
        if after:
            run(runner, batch)
        raise KeyboardInterrupt

    return press


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_interrupted_step_changes_no_token(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, steps: int, after: bool
) -> None:
    """Ctrl-C before the model has run, or after it, in a step that decodes and prefills."""
    found = []
    for interrupted in (False, True):
        engine = make_engine(max_batch_tokens=256)
        root = engine.prefill(list(range(11)), seed=1)
        kids = root.fork(3)
        generations = engine.submit(kids, max_tokens=20, temperature=2.0)
        for _ in range(steps):
            engine.step()
        other, _ = engine.submit_prefill(list(range(40, 70)), seed=2)
        if interrupted:
            with monkeypatch.context() as patch:
                patch.setattr(ModelRunner, "run", interrupted_run(after))
                for _ in range(2):
                    with pytest.raises(KeyboardInterrupt):
                        engine.step()
            engine.check()
            assert [len(kid.tokens) for kid in kids] == [steps] * 3
        forks = [kid.fork()[0] for kid in kids]
        while engine.has_work:
            engine.step()
        assert all(generation.done for generation in generations)
        engine.decode(forks, max_tokens=3, temperature=2.0)
        scores = engine.score(kids[0], [1, 2, 3]), engine.score(other, [1, 2, 3])
        found.append(([node.tokens for node in kids], scores, [len(fork.tokens) for fork in forks]))
        root.release(subtree=True)
        other.release()
        engine.close()
        assert engine.stats().pages_free == engine.stats().pages_total
        assert engine._runner.tips.used == 0
    (tokens, scores, lengths), (same, scores_again, lengths_again) = found
    assert same == tokens
    assert lengths == lengths_again == [3, 3, 3]
    for first, second in zip(scores, scores_again, strict=True):
        assert second == pytest.approx(first, abs=1e-4)


def fail(*_: object) -> NoReturn:
    raise RuntimeError("out of memory")


def fail_on_many(decoder: Decoder, hidden: Tensor) -> Tensor:
    """`Decoder.logits` with room for those of the decoding nodes alone."""
    return decoder.weights.lm_head(hidden).float() if len(hidden) <= 2 else fail()


FAILURES = [(Decoder, "logits", fail_on_many), (ModelRunner, "values_at", fail), (ModelRunner, "run", fail)]


@pytest.mark.parametrize("bursts", [False, True])
@pytest.mark.parametrize("failure", FAILURES, ids=["scores", "values", "model"])
def test_the_engine_goes_on_after_a_step_that_failed_late(
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    failure: tuple[type, str, Callable[..., object]],
    bursts: bool,
) -> None:
    """A generation ends in the step, a score and a prompt are computed, and then there is no memory for the rest."""
    if bursts:
        monkeypatch.setattr(core, "make_device_loop", HostLoop)
    engine = make_engine()
    root = engine.prefill(list(range(11)), seed=1)
    expected = engine.score(root, [5, 6, 7, 8])
    ending, going = root.fork(2)
    generations = [engine.submit(ending, max_tokens=2)[0], engine.submit(going, max_tokens=9)[0]]
    engine.step()
    scratch, score = engine.submit_score(root, [5, 6, 7, 8])
    other, prompt = engine.submit_prefill(list(range(40, 70)))
    with monkeypatch.context() as patch:
        patch.setattr(*failure)
        with pytest.raises(RuntimeError, match="memory"):
            engine.step()
    for _ in range(40):
        if not engine.has_work:
            break
        engine.step()
    assert not engine.has_work
    assert [generation.finish_reason for generation in generations] == ["length"] * 2
    assert ([len(node.tokens) for node in (ending, going)], ending.finish_reason) == ([2, 9], "length")
    assert prompt is not None
    assert prompt.done
    assert score.logprobs == pytest.approx(expected[1:], abs=1e-5)
    engine.decode([*ending.fork(), *going.fork(), other], max_tokens=2)
    assert engine.score(root, going.tokens) == pytest.approx(going.logprobs, abs=1e-4)
    scratch.release()


def test_an_interrupted_wait_for_masks_leaves_tail_pages_whole(
    make_tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_tiny_engine()
    root = engine.prefill(PROMPT)
    kids = root.fork(2)
    generations = engine.submit(kids, max_tokens=3, grammar=DIGITS)
    with monkeypatch.context() as patch:
        patch.setattr(Constraints, "failed", fail)
        with pytest.raises(RuntimeError):
            engine.step()
    while engine.has_work:
        engine.step()
    assert all(generation.done for generation in generations)
    for kid in kids:
        assert kid.raw_logprobs == pytest.approx(engine.score(root, kid.tokens), abs=1e-4)


def test_an_interrupted_step_notes_nothing_of_what_it_drew(
    make_tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_tiny_engine()
    root = engine.prefill(PROMPT)
    (kid,) = root.fork()
    [generation] = engine.submit(kid, max_tokens=3, grammar=DIGITS, top_logprobs=2)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(ModelRunner, "run", fail)
            with pytest.raises(RuntimeError):
                engine.step()
        engine.step()
    while engine.has_work:
        engine.step()
    assert len(generation.top_logprobs) == len(kid.tokens) == 3
    assert kid.raw_logprobs == pytest.approx(engine.score(root, kid.tokens), abs=1e-4)

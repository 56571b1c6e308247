"""A step that fails half-way leaves its nodes as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dendrite.attention.base import ForwardBatch
from dendrite.engine.engine import Engine
from dendrite.engine.runner import ModelRunner


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

"""The packaged model through the public API, against transformers on the same folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

import dendrite
from dendrite.model.folder import resolve
from dendrite.search.tasks.countdown import problems

PROMPT = "Numbers: 3 7 8 25. Target: 99.\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[dendrite.Engine]:
    with dendrite.Engine.from_pretrained("countdown", device="cpu", debug_checks=True) as engine:
        yield engine
        assert engine.stats().pages_held == 0


def test_greedy_continuations_are_those_of_transformers(engine: dendrite.Engine) -> None:
    assert engine.tokenizer is not None
    peer = AutoModelForCausalLM.from_pretrained(resolve("countdown"), dtype=torch.float32)
    for task in problems(8, seed=1):
        root = engine.prefill(task.prompt)
        (kid,) = root.fork()
        engine.decode(kid, max_tokens=70, temperature=0.0)
        ids = torch.tensor([engine.tokenizer.encode(task.prompt)])
        made = peer.generate(ids, max_new_tokens=70, do_sample=False)[0, ids.shape[1] :].tolist()
        assert kid.tokens == made
        root.release(subtree=True)


def test_a_stop_text_ends_a_thought(engine: dendrite.Engine) -> None:
    root = engine.prefill(PROMPT)
    kids = root.fork(8)
    engine.decode(kids, max_tokens=40, stop="\n")
    for kid in kids:
        assert kid.finish_reason == "stop"
        assert kid.text.index("\n") == len(kid.text) - 1
        assert kid.value is not None
        assert 0.0 <= kid.value <= 1.0
    assert len({kid.text for kid in kids}) > 1
    root.release(subtree=True)


def test_streamed_tokens_are_the_nodes_tokens(engine: dendrite.Engine) -> None:
    root = engine.prefill(PROMPT)
    kids = root.fork(3)
    streamed: dict[dendrite.Node, list[int]] = {kid: [] for kid in kids}
    endings = 0
    for event in engine.stream(kids, max_tokens=60):
        streamed[event.node].append(event.token)
        endings += event.finish_reason is not None
    assert endings == 3
    assert streamed == {kid: kid.tokens for kid in kids}
    root.release(subtree=True)


def test_scores_and_values_are_those_of_the_generation(engine: dendrite.Engine) -> None:
    root = engine.prefill(PROMPT)
    (kid,) = root.fork()
    engine.decode(kid, max_tokens=20, stop="\n")
    assert engine.score(root, kid.tokens) == pytest.approx(kid.logprobs, abs=1e-4)
    assert engine.score(root, kid.text) == pytest.approx(kid.logprobs, abs=1e-4)
    assert engine.value(kid) == pytest.approx(kid.value, abs=1e-5)
    assert engine.value(kid.at(5).fork()[0]) is not None
    root.release(subtree=True)

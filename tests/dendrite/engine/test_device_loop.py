"""Bursts on the device, run here by Triton's interpreter: what they generate is what the plain path would.

The interpreter takes a second or more for a step, and far more for one of a single row, so most of this is slow. On a
GPU `test_gpu.py` covers the same and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.engine import core
from dendrite.engine.engine import Engine
from dendrite.kv.node import Node
from dendrite.model import linear
from dendrite.model.decoder import Decoder
from tests.recompute import logits_by_recomputation
from tests.tiny_config import TINY

pytest.importorskip("triton")

SHAPE = replace(TINY, num_layers=1, hidden_size=64, head_dim=16, vocab_size=61, max_context=160)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_can_pack", lambda weight: False)
        yield Decoder.random(SHAPE, seed=3)


@pytest.fixture
def make_engine(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    """Engines on the CPU with the GPU's decode loop."""
    from dendrite.engine.device_loop import DeviceLoop

    monkeypatch.setattr(core, "make_device_loop", DeviceLoop)
    made: list[Engine] = []

    def make(**settings: object) -> Engine:
        values = {"kv_tokens": 1024, "page_size": 8, "max_running": 8, "max_burst": 4, "device": "cpu"}
        config = EngineConfig.model_validate({**values, "debug_checks": True, **settings})
        made.append(Engine(decoder, config=config))
        return made[-1]

    yield make
    for engine in made:
        engine.check()


@pytest.fixture
def plain(decoder: Decoder) -> Engine:
    """The same model without the loop."""
    settings = EngineConfig(kv_tokens=1024, page_size=8, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "make_device_loop", lambda *_: None)
        return Engine(decoder, config=settings)


def assert_recomputation_agrees(decoder: Decoder, node: Node) -> None:
    fresh = torch.log_softmax(partial(logits_by_recomputation, decoder)(node.path_tokens), -1)
    for at, logprob in enumerate(node.logprobs, start=node.length - len(node.logprobs)):
        assert abs(fresh[at - 1, node.path_tokens[at]].item() - logprob) < 1e-4


@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_plain_path(make_engine: Callable[..., Engine], plain: Engine) -> None:
    found: list[list[int]] = []
    for engine in (make_engine(), plain):
        kids = engine.prefill(list(range(1, 20))).fork(3)
        engine.decode(kids, max_tokens=7, temperature=0.0)
        found.append([token for kid in kids for token in kid.tokens])
    assert found[0] == found[1]


def test_sampled_tokens_are_those_of_the_plain_path(make_engine: Callable[..., Engine], plain: Engine) -> None:
    found: list[list[list[int]]] = []
    for engine in (make_engine(), plain):
        root = engine.prefill(list(range(1, 20)), seed=5)
        kids = root.fork(3)
        engine.decode(kids, max_tokens=5, temperature=0.9)
        grandkids = kids[0].at(3).fork(2)
        engine.decode([*grandkids, kids[1]], max_tokens=3, top_k=20, top_p=0.9, min_p=0.01)
        found.append([node.tokens for node in [*kids, *grandkids]])
        root.release(subtree=True)
        engine.close()
        assert engine.stats().pages_free == engine.stats().pages_total
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_tree_of_generations_agrees_with_recomputation(make_engine: Callable[..., Engine], decoder: Decoder) -> None:
    engine = make_engine()
    first = engine.prefill(list(range(1, 42))).fork(2)
    second = engine.prefill(list(range(30, 43)))
    engine.decode([*first, second], max_tokens=9, temperature=2.0)
    deeper = [*first[0].fork(2), *first[0].at(4).fork(1), *second.fork(1)]
    engine.decode(deeper, max_tokens=10, temperature=2.0)
    for node in [*first, second, *deeper]:
        assert len(node.logprobs) in (9, 10)
        assert_recomputation_agrees(decoder, node)


@pytest.mark.slow
def test_lengths_may_differ(make_engine: Callable[..., Engine], decoder: Decoder) -> None:
    engine = make_engine()
    kids = engine.prefill([1, 2, 3]).fork(3)
    generations = [engine.submit(kid, max_tokens=1 + 4 * at, temperature=1.5)[0] for at, kid in enumerate(kids)]
    while engine.has_work:
        engine.step()
    assert [generation.finish_reason for generation in generations] == ["length"] * 3
    assert [len(kid.tokens) for kid in kids] == [1, 5, 9]
    for kid in kids:
        assert_recomputation_agrees(decoder, kid)


def test_a_stop_id_ends_a_row_inside_a_burst(make_engine: Callable[..., Engine], decoder: Decoder) -> None:
    engine = make_engine()
    kid, other = engine.prefill([1, 2, 3], seed=4).fork(2)
    engine.decode([kid, other], max_tokens=5, temperature=1.5)
    stop = kid.tokens[3]
    ends = kid.tokens.index(stop) + 1
    again, same = engine.prefill([1, 2, 3], seed=4).fork(2)
    engine.submit(again, max_tokens=5, temperature=1.5, stop_token_ids=(stop,))
    engine.submit(same, max_tokens=5, temperature=1.5)
    while engine.has_work:
        engine.step()
    assert (again.tokens, again.finish_reason) == (kid.tokens[:ends], "stop")
    assert (same.tokens, same.finish_reason) == (other.tokens, "length")
    children = again.fork(2)  # they start from the hidden state of the stop token
    engine.decode(children, max_tokens=1)
    for node in (again, same, *children):
        assert_recomputation_agrees(decoder, node)


@pytest.mark.slow
def test_a_fork_while_decoding_continues_what_the_host_has_seen(
    make_engine: Callable[..., Engine], decoder: Decoder
) -> None:
    engine = make_engine()
    root = engine.prefill(list(range(5, 20)))
    (kid,) = root.fork()
    (generation,) = engine.submit(kid, max_tokens=20, temperature=1.5)
    engine.step()
    engine.step()
    (fork,) = kid.fork()
    seen = len(kid.tokens)
    engine.decode(fork, max_tokens=6, temperature=1.5)
    assert fork.base == root.length + seen
    while not generation.done:
        engine.step()
    for node in (kid, fork):
        assert_recomputation_agrees(decoder, node)


@pytest.mark.slow
def test_penalties_and_bursts_mix(make_engine: Callable[..., Engine], decoder: Decoder) -> None:
    engine = make_engine()
    kids = engine.prefill([1, 2, 3]).fork(2)
    engine.submit(kids[0], max_tokens=4, repetition_penalty=1.3)
    engine.submit(kids[1], max_tokens=11)
    while engine.has_work:
        engine.step()
    for kid in kids:
        assert_recomputation_agrees(decoder, kid)

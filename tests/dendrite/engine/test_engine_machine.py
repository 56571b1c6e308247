"""Random work on a pool that is far too small: every token generated must still be the one that recomputation gives.

Two drivers: a stateful machine, which shrinks what it finds, and plain random work, which goes deeper into pressure.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from dendrite.config import EngineConfig
from dendrite.engine import core
from dendrite.engine.engine import Engine
from dendrite.engine.generation import Generation
from dendrite.errors import OutOfPages
from dendrite.kv.node import Node
from dendrite.model.decoder import Decoder
from tests.dendrite.engine.host_loop import HostLoop
from tests.recompute import logits_by_recomputation
from tests.tiny_config import TINY

SHAPE = replace(
    TINY,
    vocab_size=31,
    hidden_size=16,
    intermediate_size=32,
    num_heads=2,
    num_kv_heads=1,
    max_context=128,
)
DECODER = Decoder.random(SHAPE, seed=1)


def small_engine(*, bursts: bool = False) -> Engine:
    """14 pages of 8 tokens; with `bursts`, several tokens a step, as on a GPU."""
    config = EngineConfig(
        kv_tokens=112, page_size=8, max_batch_tokens=24, max_running=8, debug_checks=True, device="cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        if bursts:
            patch.setattr(core, "make_device_loop", HostLoop)
        return Engine(DECODER, config=config)


def assert_recomputation_agrees(node: Node) -> None:
    fresh = torch.log_softmax(logits_by_recomputation(DECODER, node.path_tokens), -1)
    for at, logprob in enumerate(node.logprobs, start=node.length - len(node.logprobs)):
        assert abs(fresh[at - 1, node.path_tokens[at]].item() - logprob) < 1e-4


def finish(engine: Engine, nodes: list[Node], generations: list[Generation]) -> None:
    """Run to the end; then everything must be accounted for, and released without a trace."""
    for _ in range(3000):
        if not engine.has_work:
            break
        engine.step()
    assert not engine.has_work
    for generation in generations:
        assert generation.done
        assert generation.error is None or generation.node.released or isinstance(generation.error, OutOfPages)
    for node in nodes:
        if node.logprobs and not node.released:
            assert_recomputation_agrees(node)
    for node in nodes:
        node.release()
    engine.close()
    stats = engine.stats()
    assert (stats.pages_held, stats.pages_cached, stats.pages_free) == (0, 0, stats.pages_total)
    assert engine._runner.tips.used == 0
    engine.check()


class EngineMachine(RuleBasedStateMachine):
    """Forks, inner forks, decoding in steps, cancelling and releasing, with 14 pages of 8 tokens."""

    nodes = Bundle("nodes")

    def __init__(self) -> None:
        super().__init__()
        self.engine = small_engine()
        self.live: list[Node] = []
        self.generations: list[Generation] = []
        self.checked: dict[Node, int] = {}

    @rule(target=nodes, prompt=st.lists(st.integers(0, 30), min_size=1, max_size=30), shared=st.booleans())
    def prefill(self, prompt: list[int], shared: bool) -> Node:
        root, _ = self.engine.submit_prefill([*range(20), *prompt] if shared else prompt)
        self.live.append(root)
        return root

    @rule(target=nodes, node=nodes, data=st.data())
    def fork(self, node: Node, data: st.DataObject) -> Node:
        if node.released:
            return node
        at = data.draw(st.none() | st.integers(0, len(node.tokens)))
        (child,) = node.fork() if at is None or node.base + at == 0 else node.at(at).fork()
        self.live.append(child)
        return child

    @rule(node=nodes, tokens=st.integers(1, 12), priority=st.integers(0, 2))
    def decode(self, node: Node, tokens: int, priority: int) -> None:
        busy = any(generation.node is node and not generation.done for generation in self.generations)
        if not node.released and not busy and node.length < 100:
            self.generations += self.engine.submit(node, max_tokens=tokens, priority=priority, temperature=2.0)

    @rule(target=nodes, node=nodes, n=st.integers(2, 5), tokens=st.integers(8, 30), priority=st.integers(0, 2))
    def expand(self, node: Node, n: int, tokens: int, priority: int) -> Node:
        if node.released or node.length > 60:
            return node
        kids = node.fork(n)
        self.live += kids
        self.generations += self.engine.submit(kids, max_tokens=tokens, priority=priority, temperature=2.0)
        return kids[-1]

    @rule(steps=st.integers(1, 40))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @precondition(lambda self: self.generations)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        self.engine.cancel(self.generations[which % len(self.generations)])

    @rule(node=consumes(nodes), subtree=st.booleans())
    def release(self, node: Node, subtree: bool) -> None:
        node.release(subtree=subtree)
        self.live = [other for other in self.live if not other.released]

    @invariant()
    def tokens_are_those_of_recomputation(self) -> None:
        for node in self.live:
            if len(node.logprobs) > self.checked.get(node, 0):
                self.checked[node] = len(node.logprobs)
                assert_recomputation_agrees(node)

    def teardown(self) -> None:
        finish(self.engine, self.live, self.generations)


class BurstMachine(EngineMachine):
    """The same, several tokens a step."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = small_engine(bursts=True)


BurstMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestBurstMachine = BurstMachine.TestCase
EngineMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestEngineMachine = EngineMachine.TestCase


@pytest.mark.parametrize("bursts", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_random_work(seed: int, bursts: bool) -> None:
    rng = random.Random(seed)
    engine = small_engine(bursts=bursts)
    nodes: list[Node] = []
    generations: list[Generation] = []
    for _ in range(60):
        live = [node for node in nodes if not node.released]
        draw = rng.random()
        node = rng.choice(live) if live else None
        if node is None or draw < 0.15:
            prompt = rng.choices(range(31), k=rng.randint(1, 30))
            nodes.append(engine.submit_prefill([*range(20), *prompt] if rng.random() < 0.5 else prompt)[0])
        elif draw < 0.3:
            at = rng.randint(0, len(node.tokens))
            nodes += node.at(at).fork() if node.base + at else node.fork()
        elif draw < 0.45:
            if node.length < 100 and all(g.done or g.node is not node for g in generations):
                wanted = rng.randint(1, 12)
                stops = rng.sample(range(31), k=2) if rng.random() < 0.3 else ()
                generations += engine.submit(
                    node, max_tokens=wanted, priority=rng.randint(0, 2), temperature=2.0, stop_token_ids=stops
                )
        elif draw < 0.6 and node.length <= 60:
            kids = node.fork(rng.randint(2, 5))
            nodes += kids
            wanted = rng.randint(8, 30)
            generations += engine.submit(kids, max_tokens=wanted, priority=rng.randint(0, 2), temperature=2.0)
        elif draw < 0.65 and generations:
            engine.cancel(rng.choice(generations))
        elif draw < 0.75:
            node.release(subtree=rng.random() < 0.5)
        else:
            for _ in range(rng.randint(1, 20)):
                engine.step()
    finish(engine, nodes, generations)


@pytest.mark.parametrize("bursts", [1, 2, 3])
def test_an_interrupted_burst_leaves_nodes_that_go_on_correctly(bursts: int) -> None:
    engine = small_engine(bursts=True)
    root = engine.prefill(list(range(11)))
    kids = root.fork(3)
    engine._stepper._loop.interrupt_in = bursts
    with pytest.raises(KeyboardInterrupt):
        engine.decode(kids, max_tokens=20, temperature=2.0)
    engine.check()
    assert {len(kid.tokens) for kid in kids} == {[0, 1, 5][bursts - 1]}
    forks = [kid.fork()[0] for kid in kids]
    generations = engine.submit([*kids[:2], *forks], max_tokens=4, temperature=2.0)
    finish(engine, [*kids, *forks, root], generations)


def test_the_engine_steps_on_after_an_interrupt() -> None:
    engine = small_engine(bursts=True)
    root = engine.prefill(list(range(11)))
    kids = root.fork(2)
    generations = engine.submit(kids, max_tokens=20, temperature=2.0)
    engine._stepper._loop.interrupt_in = 2
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    finish(engine, [*kids, root], generations)
    assert [len(kid.tokens) for kid in kids] == [20, 20]

"""KV exchanged at random between two engines that are too small: pages are conserved, and what is read is right."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from dendrite.engine.engine import Engine
from dendrite.engine.generation import Compute, Generation
from dendrite.errors import Cancelled, KvNotComputed, OutOfPages
from dendrite.kv.node import Node
from tests.dendrite.engine.test_engine_machine import assert_recomputation_agrees, finish, small_engine


class ExchangeMachine(RuleBasedStateMachine):
    """Forks, decoding, given tokens, export, import and release, with 14 pages of 8 tokens in each engine."""

    nodes = Bundle("nodes")

    def __init__(self) -> None:
        super().__init__()
        self.engines = (small_engine(), small_engine(bursts=True))
        self.made: dict[Engine, list[Node]] = {engine: [] for engine in self.engines}
        self.checked: dict[Node, int] = {}

    def engine_of(self, node: Node) -> Engine:
        return next(engine for engine in self.engines if engine.cache is node.tree.cache)

    def add(self, node: Node) -> Node:
        self.made[self.engine_of(node)].append(node)
        return node

    @rule(target=nodes, which=st.integers(0, 1), prompt=st.lists(st.integers(0, 30), min_size=1, max_size=20))
    def prefill(self, which: int, prompt: list[int]) -> Node:
        root, job = self.engines[which].submit_prefill([*range(11), *prompt])
        if job is not None:
            self.run(self.engines[which], job)
        return self.add(root)

    @rule(target=nodes, node=nodes, back=st.sampled_from([0, 0, 1, 5]), tokens=st.integers(1, 12))
    def expand(self, node: Node, back: int, tokens: int) -> Node:
        """Fork and decode to the end: what was imported is read."""
        if node.released or node.length > 70:
            return node
        child = self.add(node.at(max(0, len(node.tokens) - back) if node.base else len(node.tokens)).fork()[0])
        engine = self.engine_of(node)
        self.run(engine, *engine.submit(child, max_tokens=tokens, temperature=2.0))
        return child

    def run(self, engine: Engine, *requests: Generation | Compute) -> None:
        with contextlib.suppress(OutOfPages, Cancelled):
            engine._run_until(*requests)

    @rule(target=nodes, node=nodes, back=st.integers(0, 9))
    def fork(self, node: Node, back: int) -> Node:
        if node.released:
            return node
        at = max(0, len(node.tokens) - back)
        return self.add(node.at(at if node.base + at else 1).fork()[0])

    @rule(target=nodes, node=nodes, tokens=st.lists(st.integers(0, 30), min_size=1, max_size=9))
    def append(self, node: Node, tokens: list[int]) -> Node:
        if node.released or node.length > 70:
            return node
        return self.add(self.engine_of(node).submit_append(node, tokens)[0])

    @rule(node=nodes, tokens=st.integers(1, 12))
    def decode(self, node: Node, tokens: int) -> None:
        engine = self.engine_of(node)
        if not node.released and node.length < 80 and not engine._requests.is_busy(node):
            engine.submit(node, max_tokens=tokens, temperature=2.0)

    @rule(which=st.integers(0, 1), steps=st.integers(1, 20))
    def step(self, which: int, steps: int) -> None:
        for _ in range(steps):
            self.engines[which].step()

    @rule(target=nodes, node=nodes, to=st.integers(0, 1), back=st.sampled_from([0, 0, 0, 1, 7]), root=st.booleans())
    def move(self, node: Node, to: int, back: int, root: bool) -> Node:
        """Export a path and import it: as a `root`, or below the node there that has most of it."""
        end = node.length - back
        if node.released or end < 1:
            return node
        source, target = self.engine_of(node), self.engines[to]
        known = [
            other
            for other in self.made[target]
            if not other.released and 0 < other.length < end and other.path_tokens == node.path_tokens[: other.length]
        ]
        below = None if root else max(known, key=lambda other: other.length, default=None)
        before = target.cache.held_pages
        with contextlib.suppress(KvNotComputed, OutOfPages):
            part = source.export_path(node, below.length if below is not None else 0, end)
            copy = target.import_path(part, below=below)
            assert copy.path_tokens == node.path_tokens[:end]
            return self.add(copy)
        assert target.cache.held_pages == before
        return node

    @rule(node=consumes(nodes), subtree=st.booleans())
    def release(self, node: Node, subtree: bool) -> None:
        node.release(subtree=subtree)
        held = self.engine_of(node).cache.held_pages
        node.release(subtree=subtree)
        assert self.engine_of(node).cache.held_pages == held

    @invariant()
    def tokens_are_those_of_recomputation(self) -> None:
        for nodes in self.made.values():
            for node in nodes:
                if not node.released and len(node.logprobs) > self.checked.get(node, 0):
                    self.checked[node] = len(node.logprobs)
                    assert_recomputation_agrees(node)

    @invariant()
    def pages_are_conserved(self) -> None:
        for engine in self.engines:
            engine.check()
            stats = engine.stats()
            assert stats.pages_free + stats.pages_held + stats.pages_cached == stats.pages_total

    def teardown(self) -> None:
        for engine, nodes in self.made.items():
            finish(engine, nodes, [])


ExchangeMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestExchangeMachine = ExchangeMachine.TestCase

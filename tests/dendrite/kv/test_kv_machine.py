"""The KV tree against a model that copies every path and simulates every slot."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dendrite.errors import NodeReleased, OutOfPages
from dendrite.kv import Node, NodeState
from dendrite.kv.ancestry import pending_ancestors
from tests.dendrite.kv.simulated import SimulatedEngine

SHARED_PROMPTS = [[1] * 70, [1] * 20 + [2] * 50, [1] * 8 + [3] * 62, [4] * 70]
LENGTHS = st.sampled_from([1, 7, 8, 9, 15, 16, 17, 20, 27, 31, 32, 33, 47, 48, 49, 60, 70])
NUMBER = st.integers(0, 12)
BACK = st.sampled_from([0, 0, 0, 1, 5, 9, 17])
COUNTS = st.sampled_from([1, 1, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33])


class KvTreeMachine(RuleBasedStateMachine):
    """Rules pick nodes by number among all ever made, so that released ones are tried too."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.paths: dict[Node, list[int]] = {}  # the model: a full copy of each node's path
        self.released: set[Node] = set()
        self.token = 10

    @initialize(
        pages=st.sampled_from([200, 40, 12, 6]), page_size=st.sampled_from([8, 16, 32]), prefix_cache=st.booleans()
    )
    def start(self, pages: int, page_size: int, prefix_cache: bool) -> None:
        self.engine = SimulatedEngine(pages, page_size, prefix_cache=prefix_cache)
        self.cache = self.engine.cache

    # What the model expects

    def pick(self, number: int) -> Node:
        return self.nodes[-1 - number % len(self.nodes)]  # small numbers: recent nodes

    def add(self, node: Node, path: list[int]) -> None:
        assert node.path_tokens == path
        self.nodes.append(node)
        self.paths[node] = path

    def runnable(self, node: Node) -> bool:
        exists = node._state in (NodeState.LIVE, NodeState.HELD)
        return exists and not pending_ancestors(node)

    def books(self) -> dict[str, Any]:
        """Everything that a failed operation must leave as it was."""
        return {
            "nodes": [
                (node, node._state, node.computed, list(node.pages), list(node.tokens), node.child_count)
                for node in self.nodes
            ],
            "free": self.cache.pool.num_free,
            "cached": self.cache.cached_pages,
            "counters": (self.cache.cow_copies, self.cache.takeovers, self.cache.evicted_pages, self.cache.forks),
            "freed": len(self.engine.freed),
        }

    # Rules

    @rule(source=st.integers(0, 9), length=LENGTHS, extra=st.integers(0, 5), chunk=st.sampled_from([70, 70, 70, 9, 0]))
    def new_tree(self, source: int, length: int, extra: int, chunk: int) -> None:
        """The beginning of a known prompt or of a node's path, and perhaps something new."""
        known = self.paths[self.pick(source)] if source < len(self.nodes) else SHARED_PROMPTS[source % 4]
        prompt = known[:length] + [5] * extra or [5]
        root = self.engine.prompt(prompt, compute=False)
        common = [
            sum(1 for _ in _common(prompt, self.paths[node][: node.base + node.computed]))
            for node in self.nodes
            if node in self.cache.index
        ]
        assert root.base <= max(common, default=0)
        if root.parent is not None:
            assert root.parent.base < root.base <= root.parent.base + root.parent.computed
        self.add(root, prompt)
        self.prefill_part(root, chunk)
        self.cache.seal(root)

    def prefill_part(self, node: Node, n: int) -> None:
        if self.runnable(node) and min(n, len(node.tokens) - node.computed) > 0:
            self.attempt(lambda: self.engine.compute(node, n))

    @precondition(lambda self: self.nodes)
    @rule(number=NUMBER, n=st.sampled_from([70, 70, 5]))
    def prefill(self, number: int, n: int) -> None:
        """Compute what a node lacks, its ancestors' part first."""
        node = self.pick(number)
        if node._state is not NodeState.FREED:
            for pending in [*pending_ancestors(node), node]:
                self.prefill_part(pending, n)

    @precondition(lambda self: self.nodes)
    @rule(number=NUMBER)
    def seal(self, number: int) -> None:
        node = self.pick(number)
        if node._state is NodeState.LIVE:
            self.cache.seal(node)

    @precondition(lambda self: self.nodes)
    @rule(numbers=st.lists(NUMBER, min_size=1, max_size=6), n=COUNTS)
    def decode(self, numbers: list[int], n: int) -> None:
        self.decode_batch(list(dict.fromkeys(self.pick(number) for number in numbers)), n)

    @precondition(lambda self: self.nodes)
    @rule(number=NUMBER, children=st.lists(st.tuples(BACK, COUNTS), min_size=1, max_size=4), release=st.booleans())
    def expand(self, number: int, children: list[tuple[int, int]], release: bool) -> None:
        """Fork here and there, decode each child a while, give the parent up at some point: what a search does."""
        node = self.pick(number)
        if node in self.released:
            return
        made: list[Node] = []
        for back, _ in children:
            (child,) = node.at(max(0, len(node.tokens) - back)).fork()
            self.add(child, self.paths[node][: child.base])
            made.append(child)
        if release:
            self.release(number + len(made), subtree=False)
        for child, (_, size) in zip(made, children, strict=True):
            self.decode_batch([child], size)

    def decode_batch(self, nodes: list[Node], n: int) -> None:
        """Several nodes in one step: all reserve, then all tails are copied at once."""
        batch = [
            (node, [self.fresh() for _ in range(n)])
            for node in nodes
            if not node.released and self.runnable(node) and node.computed == len(node.tokens)
        ]
        if len(batch) == 1:
            done = self.attempt(lambda: self.engine.step(batch))
        else:
            need = sum(-(-n // self.engine.page_size) + 1 for _ in batch)
            done = need <= self.cache.available_pages
            if done:
                self.engine.step(batch)
        if done:
            for node, tokens in batch:
                self.paths[node] = self.paths[node] + tokens

    @precondition(lambda self: self.nodes)
    @rule(number=NUMBER, n=st.integers(1, 4))
    def fork(self, number: int, n: int) -> None:
        node = self.pick(number)
        if node in self.released:
            with pytest.raises(NodeReleased):
                node.fork(n)
            return
        for child in node.fork(n):
            self.add(child, list(self.paths[node]))

    @precondition(lambda self: self.nodes)
    @rule(number=NUMBER, n=st.integers(1, 3), back=st.integers(0, 20))
    def fork_at(self, number: int, n: int, back: int) -> None:
        node = self.pick(number)
        if node in self.released:
            with pytest.raises(NodeReleased):
                node.at(0)
            return
        k = max(0, len(node.tokens) - back)
        for child in node.at(k).fork(n):
            self.add(child, self.paths[node][: node.base + k])

    @precondition(lambda self: self.nodes)
    @rule(number=NUMBER, subtree=st.booleans())
    def release(self, number: int, subtree: bool) -> None:
        node = self.pick(number)
        node.release(subtree=subtree)
        self.released.add(node)
        if subtree:
            self.released |= {other for other in self.nodes if other.tree is node.tree and _below(other, node)}
        before = self.books()
        node.release(subtree=subtree)
        assert self.books() == before

    @precondition(lambda self: self.nodes)
    @rule(number=NUMBER)
    def drop(self, number: int) -> None:
        node = self.pick(number)
        if node._state not in (NodeState.LIVE, NodeState.HELD):
            with pytest.raises(NodeReleased):
                self.cache.drop(node)
            return
        before = self.books()
        if self.engine.droppable(node):
            assert node.computed == 0
            assert not node.pages
        else:
            assert self.books() == before

    @rule(n=st.integers(0, 10))
    def evict(self, n: int) -> None:
        expected = min(n, self.cache.cached_pages)
        assert self.cache.evict(n) >= expected

    @rule()
    def clear_cache(self) -> None:
        self.cache.clear_cache()
        assert self.cache.cached_pages == 0

    def fresh(self) -> int:
        self.token += 1
        return self.token

    def attempt(self, operation: Any) -> bool:
        """Run it; where pages run out, it says so and has changed nothing."""
        before = self.books()
        available = self.cache.available_pages
        refused: OutOfPages | None = None
        try:
            operation()
        except OutOfPages as error:
            refused = error
        if refused is not None:
            assert refused.free == available < refused.need
            assert self.books() == before
        return refused is None

    # Invariants

    @invariant()
    def every_node_reads_its_path(self) -> None:
        if not self.nodes:
            return
        self.engine.verify(self.nodes)
        for node, path in self.paths.items():
            assert node.path_tokens == path
            assert node.released == (node in self.released)
            assert len(node.pages) <= -(-len(path) // self.engine.page_size)

    @invariant()
    def nodes_exist_as_long_as_needed(self) -> None:
        """Exactly the live nodes, the cached prompts, and their ancestors."""
        needed = set()
        for node in self.nodes:
            if node not in self.released or node in self.cache.index:
                above: Node | None = node
                while above is not None and above not in needed:
                    needed.add(above)
                    above = above.parent
        for node in self.nodes:
            assert (node._state is not NodeState.FREED) == (node in needed), node
            children = [other for other in self.nodes if other.parent is node and other in needed]
            assert node.child_count == len(children)

    def teardown(self) -> None:
        for node in self.nodes:
            node.release()
        if self.nodes:
            self.cache.check()
            self.cache.clear_cache()
            assert self.cache.pool.num_used == 0
            assert not self.cache.segments.roots
            assert not self.cache.index


def _common(one: list[int], other: list[int]) -> Any:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a


def _below(node: Node, ancestor: Node) -> bool:
    above: Node | None = node
    while above is not None and above is not ancestor:
        above = above.parent
    return above is ancestor


def test_random_histories() -> None:
    run_state_machine_as_test(KvTreeMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


@pytest.mark.slow
def test_long_random_histories() -> None:
    run_state_machine_as_test(
        KvTreeMachine, settings=settings(max_examples=3000, stateful_step_count=100, deadline=None)
    )

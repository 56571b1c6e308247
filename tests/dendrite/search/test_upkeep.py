"""What a search gives up of its own accord: hopeless subtrees, and leaves when memory runs out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from dendrite.search.backend import BackendStats, Branch
from dendrite.search.budget import Budget
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode
from tests.dendrite.search.mcts_worlds import check_at_rest, everything, grow, worlds
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, leaves, uniform

DEEP = binary(8)
PAGE = 100


class Paged(TreeBackend):
    """Counts pages: one of four tokens for each branch, of `PAGE` bytes."""

    most_held = 0

    async def expand(self, node: Any, n: int, params: Any) -> list[Branch]:
        branches = await super().expand(node, n, params)
        self.most_held = max(self.most_held, len(self.held))
        return [replace(branch, pages=1) for branch in branches]

    async def stats(self) -> BackendStats:
        return replace(await super().stats(), page_tokens=4, page_bytes=PAGE)


async def test_a_hopeless_subtree_gets_no_more_visits_and_is_released() -> None:
    values = {text: 0.1 if text.startswith("a\n") else 0.8 for text in (*DEEP, *leaves(8))}
    backend = TreeBackend(DEEP, values)
    search = await grow(
        Puzzle({}),
        backend,
        Budget(expansions=40),
        in_flight=1,
        widening_k=2,
        selection="uct",
        prune_below=0.3,
        prune_visits=4,
    )
    assert search.root is not None
    bad, good = sorted(search.root.children, key=lambda child: child.thought.text)
    assert bad.closed
    assert 4 <= bad.stats.visits <= 4 + 3, "its visits stay; those of one expansion come together"
    assert bad.stats.mean == pytest.approx(0.1)
    assert not good.closed
    last = max(index for index, (text, _, _) in enumerate(backend.calls) if text.startswith("a\n"))
    assert last < 20


async def test_pruning_takes_back_what_is_in_flight() -> None:
    """Ragged thoughts: while one lands others are under way in the subtree that is given up."""
    table: Table = {"": uniform("a\n", "b\n")} | {
        path: uniform(*(f"{'x' * size}{size}\n" for size in range(6))) for path in ("a\n", "b\n")
    }
    backend = TreeBackend(table, {"a\n": 0.1, "b\n": 0.9} | {f"a\n{'x' * n}{n}\n": 0.0 for n in range(6)})
    search = await grow(
        Puzzle({}, step_tokens=12),
        backend,
        Budget(expansions=60),
        in_flight=8,
        children=1,
        widening_k=4,
        prune_below=0.3,
        prune_visits=2,
        greedy_first=False,
    )
    assert search.root is not None
    bad = next(child for child in search.root.children if child.thought.text == "a\n")
    assert bad.closed
    assert backend.decoded > search.session.meter.tokens, "something was cancelled"
    check_at_rest(search, backend)


async def test_where_all_is_hopeless_the_search_ends() -> None:
    search = await grow(
        Puzzle({}),
        TreeBackend(DEEP, dict.fromkeys((*DEEP, *leaves(8)), 0.1)),
        Budget(tokens=4000),
        prune_below=0.3,
        prune_visits=2,
    )
    assert search.root is not None
    assert search.root.closed
    assert search.session.meter.spent is None


@pytest.mark.parametrize("in_flight", [1, 4])
async def test_when_memory_is_full_the_least_valuable_leaves_go_and_the_search_goes_on(in_flight: int) -> None:
    """The fewer "b" the higher the value; a search without limit holds 30 nodes and more."""
    values = {text: 0.9 - 0.1 * text.count("b") for text in (*DEEP, *leaves(8))}
    given: dict[str, Any] = {"in_flight": in_flight, "widening_k": 3, "children": 2, "selection": "uct"}
    free, tight = Paged(DEEP, values), Paged(DEEP, values)
    await grow(Puzzle({}, depth=20), free, Budget(expansions=60), **given)
    search = await grow(Puzzle({}, depth=20), tight, Budget(expansions=60, kv_bytes=20 * PAGE), **given)
    assert search.session.meter.expansions == 60, "it does not end for want of memory"
    assert free.most_held > 30
    assert tight.most_held <= 20 + 1, "the root's page is not counted by this backend"
    evicted = [node for node in everything(search) if node.closed and not node.children]
    assert evicted
    assert all(node.thought.text.count("b") for node in evicted if not node.thought.ended)
    check_at_rest(search, tight)


@settings(max_examples=40, deadline=None)
@given(world=worlds(), pages=st.integers(4, 30), seed=st.integers(0, 50), in_flight=st.sampled_from([1, 5]))
async def test_memory_is_never_overrun(world: Any, pages: int, seed: int, in_flight: int) -> None:
    table, values, rewards = world
    backend = Paged(table, values)
    budget = Budget(tokens=400, kv_bytes=pages * PAGE)
    search = await grow(Puzzle(rewards, step_tokens=8), backend, budget, seed, in_flight=in_flight)
    assert backend.most_held <= pages + 1, "the root owns none here"
    check_at_rest(search, backend)


class Visits(RuleBasedStateMachine):
    """Visits in flight and completed ones, against a ledger of what was done at each node."""

    nodes = Bundle("nodes")

    def __init__(self) -> None:
        super().__init__()
        self.root = SearchNode(Thought())
        self.flying: list[tuple[SearchNode, int]] = []
        self.own: dict[tuple[int, ...], int] = {}

    @rule(target=nodes)
    def the_root(self) -> SearchNode:
        return self.root

    @rule(target=nodes, node=nodes, step=st.sampled_from("abc"))
    def add(self, node: SearchNode, step: str) -> SearchNode:
        child, _ = node.add(Thought(1, step, step, 1, (ord(step),), (-1.0,)))
        return child

    @rule(node=nodes, visits=st.integers(1, 4))
    def depart(self, node: SearchNode, visits: int) -> None:
        node.depart(visits)
        self.flying.append((node, visits))

    @rule(index=st.integers(0, 50), values=st.lists(st.floats(0, 1), max_size=3))
    def land(self, index: int, values: list[float]) -> None:
        if self.flying:
            node, visits = self.flying.pop(index % len(self.flying))
            node.arrive(visits)
            for value in values[:visits]:
                node.back_up(value)
                self.own[node.path] = self.own.get(node.path, 0) + 1

    @rule(index=st.integers(0, 50))
    def cancel(self, index: int) -> None:
        self.land(index, [])

    @invariant()
    def what_is_in_flight_is_counted_here_and_above(self) -> None:
        for node in self.root.places:
            flying = sum(visits for place, visits in self.flying if node in place.lineage)
            assert node.stats.in_flight == flying

    @invariant()
    def visits_are_a_nodes_own_and_its_childrens(self) -> None:
        for node in self.root.places:
            assert node.stats.visits == self.own.get(node.path, 0) + sum(c.stats.visits for c in node.children)

    def teardown(self) -> None:
        while self.flying:
            self.cancel(0)
        assert not any(node.stats.in_flight for node in self.root.places)


Visits.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestVisits = Visits.TestCase

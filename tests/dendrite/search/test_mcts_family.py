"""What holds for every combination of Monte Carlo tree search's options."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.search.budget import Budget
from dendrite.search.mcts import Mcts
from dendrite.search.run import run_search_async
from dendrite.search.tree import SearchNode
from tests.dendrite.search.mcts_worlds import Noted, check_at_rest, every_option, everything, grow, worlds
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, uniform

SELECTIONS = ("uct", "puct", "greedy", "epsilon_greedy", "improved_policy")
PARALLEL = ("wu_uct", "virtual_loss", "none")
MODES = ("tree", "root", "leaf")
World = tuple[Table, dict[str, float], dict[str, float]]


def mode(name: str) -> dict[str, Any]:
    return {"mode": name, **{"tree": {}, "root": {"trees": 2}, "leaf": {"rollouts": 2}}[name]}


def check_conserved(search: Mcts) -> None:
    """Every node has the visits and the total that were backed up at it and at those below it.

    The roots of several trees are the same thought: what was backed up there is told of all together.
    """
    assert isinstance(search.session, Noted)
    own: defaultdict[int, list[float]] = defaultdict(list)
    for id, value in search.session.visits:
        own[id].append(value)
    several = search.trees if len(search.trees) > 1 else []
    for node in everything(search):
        if node not in several:
            check_node([node], own[node.thought.id], search.options.discount)
    if several:
        check_node(several, own[0], search.options.discount)


def check_node(nodes: list[SearchNode], own: list[float], discount: float) -> None:
    children = [child.stats for node in nodes for child in node.children]
    assert sum(node.stats.visits for node in nodes) == len(own) + sum(stats.visits for stats in children)
    total = sum(own) + discount * sum(stats.total for stats in children)
    assert sum(node.stats.total for node in nodes) == pytest.approx(total)


@settings(max_examples=150, deadline=None)
@given(world=worlds(), options=every_option(), tokens=st.integers(1, 300), seed=st.integers(0, 99))
async def test_statistics_are_conserved_and_nothing_is_left(
    world: World, options: dict[str, Any], tokens: int, seed: int
) -> None:
    table, values, rewards = world
    backend = TreeBackend(table, values)
    search = await grow(Puzzle(rewards), backend, Budget(tokens=tokens), seed, **options)
    check_at_rest(search, backend)
    check_conserved(search)
    assert backend.most_running <= options["in_flight"] * options["children"]
    assert search.nodes >= sum(1 for tree in search.trees for _ in tree.places) - len(search.trees) + 1
    for text, _, _ in backend.calls:
        assert text not in rewards, "an end is never expanded"
    best = search.best()
    assert best is not None
    found = max([node.thought.reward or 0.0 for node in everything(search)], default=0.0)
    assert (best.reward or 0.0) >= found
    if search.stopped is not None:
        assert options["early_stop"]


@settings(max_examples=40, deadline=None)
@given(world=worlds(), options=every_option(), seed=st.integers(0, 99))
async def test_every_search_replays_with_16_in_flight(world: World, options: dict[str, Any], seed: int) -> None:
    table, values, rewards = world
    runs = []
    for _ in range(2):
        backend = TreeBackend(table, values)
        given = {**options, "in_flight": 16}
        result = await run_search_async(Puzzle(rewards), backend, "mcts", Budget(tokens=300), seed, **given)
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("selection", "parallel", "how"), list(product(SELECTIONS, PARALLEL, ("tree", "root"))))
async def test_values_lead_to_the_best_leaf(selection: str, parallel: str, how: str) -> None:
    """Of 4^4 leaves one is right, and the value is high along its path alone: blind search needs 128 ends.

    Each of two trees needs as many expansions as one alone, and a few more where they share what is in flight. (Draws
    below a leaf would not see the leaf's own value.)
    """
    target = "2\n0\n3\n1\n"
    table: dict[str, dict[str, float]] = {}
    paths = [""]
    for _ in range(4):
        table |= {path: uniform("0\n", "1\n", "2\n", "3\n") for path in paths}
        paths = [path + step for path in paths for step in table[path]]
    values = {text: 0.9 if target.startswith(text) else 0.1 for text in (*table, *paths)}
    result = await run_search_async(
        Puzzle({path: float(path == target) for path in paths}),
        TreeBackend(table, values),
        "mcts",
        Budget(expansions={"tree": 90, "root": 240}[how]),
        selection=selection,
        parallel=parallel,
        widening_k=4,
        patience=100,
        widening_alpha=0,
        in_flight=4,
        **({"c": 0.2} if selection in ("uct", "puct") else {}),
        **({"c_visit": 10.0} if selection == "improved_policy" else {}),
        **mode(how),
    )
    assert (result.solved, result.text) == (True, target)


@pytest.mark.parametrize(("selection", "parallel", "how"), list(product(SELECTIONS, PARALLEL, MODES)))
async def test_the_better_arm_gets_the_visits(selection: str, parallel: str, how: str) -> None:
    """Two arms of many leaves, told apart by rollouts; no reward is a full one, so that the search goes on."""
    rng = Random(0)
    arms = {"good\n": 0.8, "bad\n": 0.2}
    table: dict[str, dict[str, float]] = {"": uniform(*arms)}
    rewards: dict[str, float] = {}
    for arm, mean in arms.items():
        table[arm] = uniform(*(f"{index}\n" for index in range(100)))
        for step in table[arm]:
            table[arm + step] = uniform("end\n")
            rewards[f"{arm}{step}end\n"] = 0.9 if rng.random() < mean else 0.0
    search = await grow(
        Puzzle(rewards),
        TreeBackend(table),
        Budget(expansions=160),
        value="rollout",
        selection=selection,
        parallel=parallel,
        children=1,
        widening_k=2,
        widening_alpha=0.8,
        greedy_first=False,
        in_flight=3,
        **({"c": 0.5} if selection in ("uct", "puct") else {}),
        **({"c_visit": 4.0} if selection == "improved_policy" else {}),
        **mode(how),
    )
    visits: Counter[str] = Counter()
    for tree in search.trees:
        for child in tree.children:
            visits[child.thought.text] += child.stats.visits
    assert visits["good\n"] > 1.5 * visits["bad\n"]
    best = search.best()
    assert best is not None
    assert best.reward == 0.9

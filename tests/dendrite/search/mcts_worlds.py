"""Random worlds and options for Monte Carlo tree search, and a way to run one and keep the tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

from hypothesis import strategies as st

from dendrite.search.budget import Budget
from dendrite.search.mcts import Mcts, MctsOptions
from dendrite.search.rollouts import place_of
from dendrite.search.session import Session
from dendrite.search.tree import SearchNode
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, uniform


class Noted(Session):
    """Keeps what it is told of visits and of moves of the root."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.visits: list[tuple[int, float]] = []
        self.moves: list[int] = []

    def backed_up(self, thought: Any, value: float) -> None:
        super().backed_up(thought, value)
        self.visits.append((thought.id, value))

    def root_moved(self, thought: Any) -> None:
        super().root_moved(thought)
        self.moves.append(thought.id)


def prepare(puzzle: Puzzle, backend: TreeBackend, budget: Budget, seed: int = 0, **options: Any) -> Mcts:
    return Mcts(Noted(puzzle, backend, budget, seed), MctsOptions(**options))


async def finish(search: Mcts) -> Mcts:
    """Run a search the way `run_search_async` does, but keep the tree."""
    try:
        await search.session.open()
        await search.run()
    finally:
        await search.session.close()
    return search


async def grow(puzzle: Puzzle, backend: TreeBackend, budget: Budget, seed: int = 0, **options: Any) -> Mcts:
    return await finish(prepare(puzzle, backend, budget, seed, **options))


def everything(search: Mcts) -> Iterator[SearchNode]:
    for tree in search.trees:
        yield from tree.places


def check_at_rest(search: Mcts, backend: TreeBackend) -> None:
    assert (backend.held, backend.running) == ([], 0)
    for node in everything(search):
        assert (node.stats.in_flight, node.pending) == (0, 0)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Table, dict[str, float], dict[str, float]]:
    """A random tree of a few levels, values for all its nodes, and rewards for its ends."""
    rng = Random(draw(st.integers(0, 10**6)))
    breadth, depth = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    table: dict[str, dict[str, float]] = {}
    values: dict[str, float] = {}
    rewards: dict[str, float] = {}
    level = [""]
    for _ in range(depth):
        for path in level:
            steps = [f"{'xyz'[: rng.randrange(4)]}{index}\n" for index in range(rng.randint(1, breadth))]
            weights = [rng.random() ** 3 + 1e-3 for _ in steps]
            table[path] = {step: weight / sum(weights) for step, weight in zip(steps, weights, strict=True)}
        level = [path + step for path in level for step in table[path]]
        values |= {path: rng.random() for path in level}
        rewards |= {path: rng.choice([0.0, 0.5]) for path in level if rng.random() < 0.1}
        level = [path for path in level if path not in rewards]
    rewards |= {path: float(rng.random() < 0.2) for path in level}
    return table, values, rewards


@st.composite
def every_option(draw: st.DrawFn) -> dict[str, Any]:
    """Options of all kinds that fit together."""
    chosen: dict[str, Any] = {
        "selection": draw(st.sampled_from(["uct", "puct", "greedy", "epsilon_greedy", "improved_policy"])),
        "parallel": draw(st.sampled_from(["wu_uct", "virtual_loss", "none"])),
        "mode": draw(st.sampled_from(["tree", "root", "leaf"])),
        "value": draw(st.sampled_from(["head", "rollout"])),
        "discount": draw(st.sampled_from([1.0, 0.7])),
        "in_flight": draw(st.sampled_from([1, 3, 16])),
        "children": draw(st.integers(1, 4)),
        "widening_k": draw(st.sampled_from([0.3, 1.0, 3.0])),
        "greedy_first": draw(st.booleans()),
        "early_stop": draw(st.booleans()),
        "temperature": 1.0,
    }
    if chosen["mode"] == "leaf":
        chosen["rollouts"] = draw(st.integers(1, 4))
    if chosen["mode"] == "root":
        chosen["trees"] = draw(st.integers(1, 4))
    else:
        match draw(st.sampled_from(["stays", "commit", "gumbel"])):
            case "commit":
                chosen["commit"] = draw(st.integers(1, 8))
            case "gumbel":
                chosen |= {
                    "root": "gumbel",
                    "simulations": draw(st.integers(1, 12)),
                    "considered": draw(st.integers(1, 4)),
                }
    if draw(st.booleans()):
        chosen |= {"prune_below": draw(st.sampled_from([0.2, 0.6])), "prune_visits": draw(st.integers(1, 4))}
    return chosen


DEEP = binary(8)
RAGGED: Table = {
    "".join(path): uniform("a\n", "bbbbb\n") for depth in range(8) for path in product(("a\n", "bbbbb\n"), repeat=depth)
}
"""Thoughts of different lengths, which don't all return at once."""


class Watched(Mcts):
    """Looks at the tree, and at what the backend holds, before and after each move of the root."""

    moves: list[dict[str, Any]]

    async def advance_root(self, child: SearchNode) -> None:
        root = self.root
        assert root is not None
        running = [owner for _, owner in self._flights.in_flight]
        before = {
            "from": root,
            "to": child,
            "at": self.session.meter.expansions,
            "stats": [(node, replace(node.stats), node.pending) for node in child.places],
            "beside": [other for other in root.children if other is not child],
            "running": running,
            "inside": [owner for owner in running if child in place_of(owner).lineage],
            "below": self._held() & self._below(child),
        }
        await super().advance_root(child)
        still = [owner for _, owner in self._flights.in_flight]
        kept = [(node, node.stats.visits, node.stats.total) for node in child.places]
        self.moves.append({**before, "still": still, "holds": self._held(), "kept": kept})

    def _held(self) -> set[int]:
        """The nodes of the backend that nobody has released, nor is about to."""
        backend, waiting = self.session.backend, set(self.session._discarded)
        assert isinstance(backend, TreeBackend)
        return {key for key, place in backend.places.items() if not place.released and key not in waiting}

    def _below(self, child: SearchNode) -> set[int]:
        """The nodes of the backend in the subtree of a child."""
        backend, keys = self.session.backend, [self.session._holdings._refs[child.thought.id]]
        assert isinstance(backend, TreeBackend)
        for key in keys:
            assert isinstance(key, int)
            keys.extend(backend.places[key].children)
        return set(keys)  # type: ignore[arg-type]


async def watch(puzzle: Puzzle, backend: TreeBackend, budget: Budget, seed: int = 0, **options: Any) -> Watched:
    plain = prepare(puzzle, backend, budget, seed, **options)
    search = Watched(plain.session, plain.options)
    search.moves = []
    await finish(search)
    return search

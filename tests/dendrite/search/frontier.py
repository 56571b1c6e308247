"""What the tests of the searches that keep a frontier share: a backend that draws without replacement, and worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import strategies as st

from dendrite.config import SamplingParams
from dendrite.search.backend import Branch, NodeRef
from dendrite.search.budget import Budget
from dendrite.search.events import SearchEvent, TerminalFound
from dendrite.search.run import run_search_async
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary


class Distinct(TreeBackend):
    """Heeds `without`, and notes how many nodes are held as calls come in."""

    most_held = 0

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        self.most_held = max(self.most_held, len(self.held))
        return await super().expand(node, n, params)

    def _sample(self, kid: int, index: int, params: SamplingParams) -> Branch:
        text = self.places[kid].text
        steps = self.table.get(text, {"": 1.0})
        known = {"".join(map(chr, each.tokens)).rstrip("\0") for each in params.without}
        left = {step: share for step, share in steps.items() if step not in known} or steps
        step = Random(f"{params.seed}/{index}").choices(list(left), list(left.values()))[0]
        table, self.table = self.table, {text: {step: steps[step]}}
        try:
            return super()._sample(kid, index, params)
        finally:
            self.table = table

    @property
    def asked(self) -> dict[str, int]:
        """Children asked for in the first call at each text."""
        first: dict[str, int] = {}
        for text, n, _ in self.calls:
            first.setdefault(text, n)
        return first


@dataclass(frozen=True)
class World:
    """A random tree whose scores are all different; no child is so unlikely that a search would not draw it."""

    table: Table
    values: Mapping[str, float]
    rewards: Mapping[str, float]

    def backend(self) -> Distinct:
        return Distinct(self.table, self.values)


@st.composite
def worlds(draw: st.DrawFn, *, solvable: bool = True) -> World:
    rng = Random(draw(st.integers(0, 10**6)))
    breadth, depth = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    table: dict[str, dict[str, float]] = {}
    values: dict[str, float] = {}
    rewards: dict[str, float] = {}
    level = [""]
    for _ in range(depth):
        for path in level:
            steps = [f"{'xyz'[: rng.randrange(4)]}{index}\n" for index in range(rng.randint(1, breadth))]
            weights = [1 + 3 * rng.random() for _ in steps]
            table[path] = {step: weight / sum(weights) for step, weight in zip(steps, weights, strict=True)}
        level = [path + step for path in level for step in table[path]]
        values |= {path: rng.random() for path in level}
        rewards |= {path: rng.random() for path in level if rng.random() < 0.2}
        level = [path for path in level if path not in rewards]
    rewards |= {path: 1.0 if solvable and rng.random() < 0.2 else rng.random() for path in level}
    return World(table, values, rewards)


budgets = st.builds(Budget, tokens=st.integers(1, 300), expansions=st.none() | st.integers(1, 30))


async def check_the_rules(world: World, algorithm: str, budget: Budget, seed: int, options: dict[str, Any]) -> None:
    """Whatever the world: budgets hold, all is released, the best end is the answer, and the search replays."""
    runs = []
    for _ in range(2):
        backend, found = world.backend(), [0.0]

        def note(event: SearchEvent, found: list[float] = found) -> None:
            if isinstance(event, TerminalFound):
                found.append(event.reward)

        puzzle = Puzzle(world.rewards)
        result = await run_search_async(puzzle, backend, algorithm, budget, seed, on_event=note, **options)
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls))
        assert (backend.held, backend.running) == ([], 0)
        assert budget.tokens is not None
        assert backend.decoded <= budget.tokens, "counting what was cancelled"
        assert budget.expansions is None or len(backend.calls) <= budget.expansions
        assert not any(text in world.rewards for text, _, _ in backend.calls), "an end is never expanded"
        assert result.reward == max(found)
        assert result.solved == (1.0 in found)
        if result.stop_reason == "exhausted":
            assert result.nodes == len({place.text for place in backend.places.values()})
    assert runs[0] == runs[1]


async def check_the_budget_is_used(algorithm: str, tokens: int) -> None:
    """To the last token and no further, on a tree that is larger than it."""
    backend = Distinct(binary(9), {})
    result = await run_search_async(Puzzle({}, depth=9), backend, algorithm, Budget(tokens=tokens))
    assert result.tokens == backend.decoded == tokens
    assert (result.stop_reason, backend.held) == ("tokens", [])

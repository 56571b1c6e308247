"""Children that the task lists: which of them are drawn, and what searches make of them."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.config import Continuation, SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument
from dendrite.search import ALGORITHMS, Budget, run_search_async
from dendrite.search.actions import append_actions
from dendrite.search.backend import Branch, NodeRef
from dendrite.search.task import Split
from dendrite.search.tasks.countdown import Countdown
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary

CHANCES = {"a\n": 0.5, "bb\n": 0.25, "c\n": 0.15, "ddd\n": 0.1}
ACTIONS = list(CHANCES)
SPLIT = Split(8)
FITTING = {"beam": {"width": 8, "branches": 4}}


async def drawn(actions: Sequence[str] = ACTIONS, n: int = 1, **changes: Any) -> list[Branch]:
    """Draw on a fresh tree; what was not drawn must be gone."""
    backend = TreeBackend({"": CHANCES})
    root = await backend.prefill("?")
    params = SamplingParams(**{"max_tokens": 8, "temperature": 1.0, "seed": 0, **changes})
    branches = await append_actions(backend, root, actions, n, params, SPLIT)
    assert sorted(backend.held) == sorted(["", *(branch.text for branch in branches)])
    return branches


async def counts(times: int, n: int, **changes: Any) -> Counter[tuple[str, ...]]:
    """How often each ordered draw of `n` comes, over as many seeds."""
    draws = [await drawn(n=n, seed=seed, **changes) for seed in range(times)]
    return Counter(tuple(branch.text for branch in branches) for branches in draws)


def chi_square(seen: Mapping[tuple[str, ...], int], expected: Mapping[tuple[str, ...], float]) -> float:
    """Pearson's statistic of counts against probabilities."""
    times = sum(seen.values())
    assert set(seen) <= set(expected)
    assert sum(expected.values()) == pytest.approx(1.0)
    return sum((seen.get(draw, 0) - times * chance) ** 2 / (times * chance) for draw, chance in expected.items())


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
async def test_one_is_drawn_by_its_probability_at_the_temperature(temperature: float) -> None:
    weights = {(text,): chance ** (1 / temperature) for text, chance in CHANCES.items()}
    expected = {draw: weight / sum(weights.values()) for draw, weight in weights.items()}
    assert chi_square(await counts(2_000, 1, temperature=temperature), expected) < 16.27, "p < 0.001 at 3 degrees"


async def test_more_are_drawn_without_replacement() -> None:
    expected = {
        (first, second): CHANCES[first] * CHANCES[second] / (1 - CHANCES[first])
        for first, second in itertools.permutations(ACTIONS, 2)
    }
    assert chi_square(await counts(3_000, 2), expected) < 31.26, "p < 0.001 at 11 degrees"


async def test_at_temperature_0_the_most_likely_come_whatever_the_seed() -> None:
    assert await counts(10, 3, temperature=0.0) == {("a\n", "bb\n", "c\n"): 10}


async def test_the_same_seed_draws_the_same() -> None:
    for seed in range(5):
        first, again = [[branch.text for branch in await drawn(n=3, seed=seed)] for _ in range(2)]
        assert first == again


@given(
    actions=st.lists(st.sampled_from(ACTIONS), max_size=8),
    n=st.integers(1, 6),
    known=st.sets(st.sampled_from(ACTIONS)),
    room=st.integers(1, 8),
    seed=st.integers(0, 50),
)
async def test_as_many_different_ones_come_as_there_are(
    actions: list[str], n: int, known: set[str], room: int, seed: int
) -> None:
    """Actions that are listed twice count once; known ones, and those that the budget has no room for, are left out.

    Where it has room for none, they are cut.
    """
    without = tuple(Continuation(tokens=tuple(map(ord, text)), logprobs=(-1.0,) * len(text)) for text in known)
    branches = await drawn(actions, n, without=without, max_tokens=room, seed=seed)
    new = {text for text in actions if text not in known}
    left = {text for text in new if len(text) <= room}
    texts = [branch.text for branch in branches]
    assert all(branch.tokens == tuple(map(ord, branch.text)) for branch in branches)
    assert {branch.finish_reason for branch in branches} <= {"given" if left else "length"}
    if left:
        assert all(math.exp(sum(branch.logprobs)) == pytest.approx(CHANCES[branch.text]) for branch in branches)
    else:
        left = {text[:room] for text in new}
    assert len(texts) == len(set(texts)) == min(n, len(left))
    assert set(texts) <= left


@pytest.mark.parametrize("wrong", ["", "123456789"], ids=["empty", "longer than a thought"])
async def test_what_cannot_be_a_thought_is_refused_before_anything_is_written(wrong: str) -> None:
    backend = TreeBackend({"": CHANCES})
    root = await backend.prefill("?")
    with pytest.raises(InvalidArgument, match=f"actions={wrong!r}: must have 1 to 8 tokens"):
        await append_actions(backend, root, ["a\n", wrong], 1, SamplingParams(), SPLIT)
    assert backend.held == [""]


class SlowToRelease(TreeBackend):
    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await super().release(node, subtree=subtree)


@pytest.mark.parametrize("turns", range(1, 8))
async def test_cancelling_leaves_nothing_held(turns: int) -> None:
    backend = SlowToRelease({"": CHANCES})
    root = await backend.prefill("?")
    task = asyncio.create_task(append_actions(backend, root, ACTIONS, 2, SamplingParams(max_tokens=8), SPLIT))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert backend.held == [""]


# ---------------------------------------------------------------- searches


class Listed(Puzzle):
    """Two choices a level, which it lists, to the third level; one leaf is the solution."""

    def actions(self, text: str) -> Sequence[str]:
        return ["a\n", "b\n"] if text.count("\n") < 3 else []


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n", "beam"])
async def test_searches_find_what_the_actions_lead_to(algorithm: str) -> None:
    backend = TreeBackend(binary(3), values={})
    task = Listed({"b\na\nb\n": 1.0})
    options = FITTING.get(algorithm, {})
    result = await run_search_async(task, backend, algorithm, Budget(tokens=400), 3, **options)
    assert (result.solved, result.text) == (True, "b\na\nb\n")
    assert result.tokens % len("a\n") == 0
    assert backend.calls == [], "the model writes nothing"
    assert backend.held == []


async def test_a_tree_of_actions_is_exhausted_and_all_that_was_drawn_is_counted() -> None:
    backend = TreeBackend(binary(3), values={})
    result = await run_search_async(Listed({}), backend, "beam", Budget(tokens=400), width=8, branches=4)
    assert (result.nodes, result.tokens, result.stop_reason) == (15, 14 * len("a\n"), "exhausted")
    assert backend.held == []


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n", "beam"])
@pytest.mark.parametrize("tokens", [1, 3, 5, 20])
async def test_actions_keep_to_the_budget(algorithm: str, tokens: int) -> None:
    backend = TreeBackend(binary(3), values={})
    result = await run_search_async(Listed({}), backend, algorithm, Budget(tokens=tokens))
    assert result.tokens <= tokens
    assert result.tokens == tokens or result.stop_reason == "exhausted"
    assert backend.held == []


class ListedCountdown(Countdown):
    """Countdown, with every line that the rule admits as a choice."""

    def actions(self, text: str) -> Sequence[str]:
        left = self._follow(text)
        if left is None or len(left) == 1:
            return []
        return list(dict.fromkeys(_lines([term.value for term in left])))


def _lines(left: Sequence[int]) -> Iterator[str]:
    for i, j in itertools.permutations(range(len(left)), 2):
        a, b = left[i], left[j]
        rest = [number for k, number in enumerate(left) if k not in (i, j)]
        for operator, result in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b if b and a % b == 0 else -1)):
            if result >= 0:
                yield f"{a}{operator}{b}={result} ({' '.join(map(str, sorted([*rest, result])))})\n"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384, debug_checks=True) as engine:
        yield engine


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n", "beam"])
async def test_a_model_chooses_among_the_lines_that_the_rule_admits(engine: Engine, algorithm: str) -> None:
    task = ListedCountdown((2, 3, 25), target=150)
    result = await run_search_async(task, engine, algorithm, Budget(tokens=600), 1)
    stats = engine.stats()
    assert result.solved, result.text
    assert (stats.decode_tokens, stats.pages_held, stats.recomputed_tokens) == (0, 0, 0)
    assert result.text.startswith(tuple(task.actions("")))
    engine.check()


async def test_draws_on_an_engine_go_by_the_models_own_probabilities(engine: Engine) -> None:
    task = ListedCountdown((2, 3, 25), target=150)
    actions = task.actions("")
    backend = AsyncEngine(engine)
    root = await backend.prefill(task.prompt)
    scores = {action: sum(engine.score(root, action)) for action in actions}
    best = sorted(actions, key=lambda action: -scores[action])[:3]
    greedy = SamplingParams(max_tokens=32, temperature=0.0)
    branches = await append_actions(backend, root, actions, 3, greedy, task.split)
    assert [branch.text for branch in branches] == best
    assert [sum(branch.logprobs) for branch in branches] == pytest.approx([scores[text] for text in best], rel=1e-3)
    held = sum(branch.pages for branch in branches)
    await backend.release(root, subtree=True)
    assert held >= 3
    assert engine.stats().pages_held == 0
    engine.check()
    await backend.aclose()


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "greedy"])
async def test_the_same_seed_gives_the_same_search_of_actions(algorithm: str) -> None:
    results = []
    for _ in range(2):
        backend = TreeBackend(binary(3), values={})
        result = await run_search_async(Listed({"b\nb\na\n": 1.0}), backend, algorithm, Budget(tokens=60), 4)
        assert backend.held == []
        results.append({**result.to_dict(), "seconds": 0.0})
    assert results[0] == results[1]

"""Where values come from: each source by hand, and what a search makes of sources that behave and that don't."""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument
from dendrite.search import Budget, run_search_async
from dendrite.search.backend import Backend, Branch, NodeRef
from dendrite.search.budget import Limit
from dendrite.search.flights import Flights
from dendrite.search.session import Session
from dendrite.search.task import Task
from dendrite.search.tasks.countdown import Countdown
from dendrite.search.thought import Thought
from dendrite.search.values import (
    CallableValues,
    Candidate,
    HeadValues,
    JudgeValues,
    LogprobValues,
    RuleValues,
    Values,
    ValueSource,
    value_source,
    valued,
)
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary

HOPELESS = Countdown((2, 4, 6, 8), target=999)
PROMPT = HOPELESS.prompt
LINE = SamplingParams(max_tokens=24, temperature=1.0, stop=("\n",), seed=5)


class Hinted(Puzzle):
    """Its rule expects as much of a text as the share of b in it."""

    def value(self, text: str) -> float | None:
        return text.count("b") / text.count("\n") if text else None


class HintedCountdown(Countdown):
    """Its rule expects the more of a text, the longer it is."""

    def value(self, text: str) -> float | None:
        return len(text) / (1 + len(text))


def candidate(
    text: str, *, value: float | None = None, logprobs: Sequence[float] = (), above: Thought | None = None
) -> Candidate:
    branch = Branch("node", tuple(range(len(logprobs))), text, tuple(logprobs), value, "stop")
    return Candidate(above or Thought(), branch, text)


async def ask(source: ValueSource, *candidates: Candidate, task: Task | None = None) -> list[float | None]:
    return await valued(source, task or Puzzle({}), TreeBackend({}), candidates)


async def search(values: Values, *, budget: Budget | None = None, task: Task | None = None, **options: Any) -> Any:
    """A search of the full binary tree of depth 3, with nothing to be solved; returns the backend too."""
    backend = TreeBackend(binary(3))
    budget = budget or Budget(expansions=6)
    algorithm = options.pop("algorithm", "mcts")
    try:
        result = await run_search_async(task or Hinted({}), backend, algorithm, budget, 1, values=values, **options)
    finally:
        assert backend.held == []
        assert backend.running == 0
    return result


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384, debug_checks=True) as engine:
        yield engine


async def grown(backend: Backend, n: int) -> tuple[NodeRef, list[Candidate]]:
    """The root of the prompt, and candidates below it."""
    root = await backend.prefill(PROMPT)
    branches = await backend.expand(root, n, LINE)
    return root, [Candidate(Thought(), branch, branch.text) for branch in branches]


# ---------------------------------------------------------------- each source


async def test_the_head_values_come_with_the_branches() -> None:
    assert await ask(HeadValues(), candidate("a\n", value=0.25), candidate("b\n")) == [0.25, None]


async def test_the_rule_values_are_the_tasks_own() -> None:
    found = await ask(RuleValues(), candidate("a\nb\n"), candidate("b\n"), candidate(""), task=Hinted({}))
    assert found == [0.5, 1.0, None]


async def test_a_likelihood_is_the_geometric_mean_over_the_whole_path() -> None:
    above = Thought(1, logprobs=(math.log(0.5), math.log(0.5)), parent=Thought())
    likely = candidate("x", logprobs=(math.log(0.8),), above=above)
    assert await ask(LogprobValues(), likely) == pytest.approx([(0.5 * 0.5 * 0.8) ** (1 / 3)])
    assert await ask(LogprobValues(), candidate("x")) == [1.0]
    assert await ask(LogprobValues(), candidate("x", logprobs=(1e-7,))) == [1.0], "rounding is no error of the model's"


async def test_named_sources_work_on_an_engine(engine: Engine) -> None:
    backend = AsyncEngine(engine)
    root, candidates = await grown(backend, 3)
    heads = await valued(value_source("head"), HOPELESS, backend, candidates)
    assert heads == pytest.approx([engine.value(each.branch.node) for each in candidates], abs=1e-5)
    likelihoods = await valued(value_source("logprob"), HOPELESS, backend, candidates)
    scores = [engine.score(root, each.branch.tokens) for each in candidates]
    assert likelihoods == pytest.approx([math.exp(sum(each) / len(each)) for each in scores], rel=1e-4)
    assert await valued(value_source("rule"), HOPELESS, backend, candidates) == [None] * 3
    await backend.aclose()


# ---------------------------------------------------------------- the judge


@pytest.mark.parametrize(("yes", "no"), [(" yes", " no"), ("1", "0"), ("y", "never")])
async def test_a_judge_gives_the_probability_of_yes_against_no(engine: Engine, yes: str, no: str) -> None:
    judge = JudgeValues("\nGood? ", yes, no)
    backend = AsyncEngine(engine)
    _, candidates = await grown(backend, 3)
    before, held = engine.stats(), engine.stats().pages_held
    found = await valued(judge, HOPELESS, backend, candidates)
    after = engine.stats()
    asked = len("\nGood? ") + len(yes) - 1 + len(no) - 1
    assert after.prefill_tokens - before.prefill_tokens == 3 * asked, "the path is not computed again"
    assert (after.recomputed_tokens, after.pages_held) == (0, held)
    engine.check()
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384) as other:
        for value, each in zip(found, candidates, strict=True):
            node = other.prefill(f"{PROMPT}{each.text}\nGood? ")
            first, second = (math.exp(sum(other.score(node, answer))) for answer in (yes, no))
            assert value == pytest.approx(first / (first + second), rel=1e-3)
    await backend.aclose()


async def test_the_children_of_an_expansion_are_judged_in_one_batch(engine: Engine) -> None:
    async def steps(count: int) -> int:
        backend = AsyncEngine(engine)
        _, candidates = await grown(backend, count)
        before = engine.stats().steps
        await valued(JudgeValues(), HOPELESS, backend, candidates)
        await backend.aclose()
        return engine.stats().steps - before

    assert await steps(8) <= await steps(1) + 2


@pytest.mark.parametrize("turns", [1, 2, 5, 9, 20])
async def test_a_judge_that_is_cancelled_leaves_nothing_held(engine: Engine, turns: int) -> None:
    backend = AsyncEngine(engine)
    root, candidates = await grown(backend, 3)
    held = engine.stats().pages_held
    task = asyncio.create_task(valued(JudgeValues(), HOPELESS, backend, candidates))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert engine.stats().pages_held == held
    await backend.release(root, subtree=True)
    assert engine.stats().pages_held == 0
    engine.check()
    await backend.aclose()


async def test_a_question_that_the_context_has_no_room_for_has_no_answer() -> None:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=128) as engine:
        backend = AsyncEngine(engine)
        _, [one] = await grown(backend, 1)
        for judge in (JudgeValues("?" * 120), JudgeValues("?", "1" * 120)):
            assert await valued(judge, HOPELESS, backend, [one]) == [None]
        await backend.release(one.branch.node)
        await backend.aclose()


@pytest.mark.parametrize("field", ["question", "yes", "no"])
def test_a_judge_needs_its_texts(field: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"values\.{field}"):
        JudgeValues(**{field: ""})


@pytest.mark.parametrize("values", ["head", "rule", "logprob", "judge"])
async def test_a_search_on_an_engine_runs_by_every_named_source(engine: Engine, values: Values) -> None:
    task = HintedCountdown((2, 4, 6, 8), target=999)
    result = await run_search_async(task, engine, "mcts", Budget(expansions=6), 2, values=values, in_flight=3)
    stats = engine.stats()
    assert result.expansions == 6
    assert (result.reward_calls > 0) == (values == "judge")
    assert (stats.pages_held, stats.running, stats.waiting, stats.recomputed_tokens) == (0, 0, 0, 0)


# ---------------------------------------------------------------- functions


async def test_a_function_is_told_the_prompt_and_the_text() -> None:
    seen = []

    def function(prompt: str, text: str) -> float:
        seen.append((prompt, text))
        return 0.5

    result = await search(function)
    assert len(seen) == result.reward_calls > 0
    assert {prompt for prompt, _ in seen} == {"?"}
    assert {text for _, text in seen} <= set(_paths(3))


async def test_awaited_calls_of_one_expansion_run_together() -> None:
    running = most = 0

    async def function(prompt: str, text: str) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return float(text)

    assert await ask(CallableValues(function), *map(candidate, ["0.1", "0.2", "0.3"])) == [0.1, 0.2, 0.3]
    assert (most, running) == (3, 0)


async def test_what_a_function_expects_guides_the_search() -> None:
    """With the reward of one leaf alone, a search goes where the function says."""
    task = Puzzle({"b\nb\nb\n": 1.0})
    result = await search(lambda prompt, text: text.count("b") / 3, task=task, budget=Budget(expansions=40))
    assert result.solved


async def test_an_error_of_the_function_ends_the_search_and_nothing_of_it_goes_on() -> None:
    started: list[str] = []
    ended: list[str] = []

    async def function(prompt: str, text: str) -> float:
        started.append(text)
        try:
            if len(started) == 6:
                raise ZeroDivisionError("mine")
            await asyncio.sleep(0 if len(started) < 4 else 60)
        finally:
            ended.append(text)
        return 0.5

    with pytest.raises(ZeroDivisionError, match="mine"):
        await search(function, algorithm="best_of_n", n=8, in_flight=8)
    assert len(started) >= 6
    assert sorted(ended) == sorted(started), "those that were waiting have been ended"


def _raise(prompt: str, text: str) -> float:
    raise KeyError(text)


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n", "beam"])
async def test_an_error_of_a_plain_function_is_the_searchs(engine: Engine, algorithm: str) -> None:
    with pytest.raises(KeyError):
        await run_search_async(HOPELESS, engine, algorithm, Budget(expansions=9), values=_raise)
    assert engine.stats().pages_held == 0
    engine.check()


async def test_cancelling_a_search_cancels_the_functions_calls() -> None:
    waiting: set[str] = set()

    async def function(prompt: str, text: str) -> float:
        waiting.add(text)
        try:
            await asyncio.sleep(60)
        finally:
            waiting.discard(text)
        return 0.5

    task = asyncio.create_task(search(function, in_flight=3))
    while not waiting:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not waiting


async def test_a_deadline_ends_calls_that_take_too_long() -> None:
    async def function(prompt: str, text: str) -> float:
        await asyncio.sleep(60)
        return 0.5

    result = await search(function, budget=Budget(seconds=0.05))
    assert (result.stop_reason, result.reward_calls) == ("seconds", 1), "a call that was begun is spent"


# ---------------------------------------------------------------- what sources say


@pytest.mark.parametrize(
    "value", [math.nan, 2.0, -0.1, math.inf, "0.5", True, 1j, [0.5]], ids=lambda value: repr(value)
)
async def test_what_is_no_value_is_named(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"values=.*in \[0, 1\]") as caught:
        await search(lambda prompt, text: value)
    assert caught.value.field == "values"


@pytest.mark.parametrize("value", [0, 1, np.float32(0.5), np.float64(0.25)])
async def test_any_real_number_will_do_and_becomes_a_float(value: Any) -> None:
    found = await ask(CallableValues(lambda prompt, text: value), candidate("a\n"))
    assert found == [float(value)]
    assert type(found[0]) is float


class Saying:
    """A source that says the same whatever it is asked."""

    counted = False

    def __init__(self, said: Any) -> None:
        self.said = said

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Any:
        return self.said


@pytest.mark.parametrize("said", [[], [0.5, 0.5, 0.5], None, 0.5, "a"])
async def test_another_number_of_values_is_refused(said: Any) -> None:
    with pytest.raises(InvalidArgument, match="values="):
        await ask(Saying(said), candidate("a\n"), candidate("b\n"))


async def test_a_source_may_know_nothing() -> None:
    result = await search(lambda prompt, text: None, algorithm="best_of_n")
    assert result.expansions > 0


@pytest.mark.parametrize("algorithm", ["mcts", "beam", "rebase", "particle_filter", "tot_dfs"])
async def test_algorithms_that_go_by_values_say_that_there_are_none(algorithm: str) -> None:
    with pytest.raises(InvalidArgument, match="value"):
        await search(lambda prompt, text: None, algorithm=algorithm)


async def test_a_source_is_not_asked_of_nothing() -> None:
    assert await ask(Saying(None)) == []


async def test_ends_that_the_task_rewards_are_not_valued() -> None:
    task = Puzzle({"a\n": 0.5})
    asked = []

    def function(prompt: str, text: str) -> float:
        asked.append(text)
        return 0.5

    await search(function, task=task, budget=Budget(expansions=12))
    assert asked
    assert "a\n" not in asked


def test_what_stands_for_no_source_is_named() -> None:
    wrong: list[Any] = ["hed", 3, None, HeadValues, float]
    for each in wrong:
        with pytest.raises(InvalidArgument, match="must be one of head, rule, logprob, judge"):
            value_source(each)


@pytest.mark.parametrize("values", ["head", "rule", "logprob", "judge", _raise, JudgeValues("?", "a", "b")])
def test_sources_pickle(values: Values) -> None:
    source = value_source(values)
    assert pickle.loads(pickle.dumps(source)) == source
    assert value_source(source) is source
    assert source.counted == (values == "judge" or not isinstance(values, str))


# ---------------------------------------------------------------- the budget of reward calls


@settings(max_examples=40)
@given(
    limit=st.integers(1, 30),
    algorithm=st.sampled_from(["mcts", "best_of_n", "beam", "rebase", "tot_bfs"]),
    seed=st.integers(0, 5),
    delays=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    depth=st.integers(2, 6),
)
async def test_no_more_calls_are_made_than_allowed(
    limit: int, algorithm: str, seed: int, delays: list[int], depth: int
) -> None:
    """Counted where they are made, so that those in flight when the search ends count too."""
    calls = 0
    turns = itertools.cycle(delays)

    async def function(prompt: str, text: str) -> float:
        nonlocal calls
        calls += 1
        for _ in range(next(turns)):
            await asyncio.sleep(0)
        return 0.5

    backend = TreeBackend(binary(depth))
    budget = Budget(reward_calls=limit, expansions=200)
    result = await run_search_async(Puzzle({}), backend, algorithm, budget, seed, values=function)
    assert result.reward_calls <= calls <= limit
    assert backend.held == []


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n"])
async def test_the_limit_ends_the_search(algorithm: str) -> None:
    backend = TreeBackend(binary(7))
    budget = Budget(reward_calls=7)
    result = await run_search_async(Puzzle({}), backend, algorithm, budget, values=lambda prompt, text: 0.5)
    expected: Limit = "reward_calls"
    assert (result.stop_reason, result.reward_calls) == (expected, 7)
    assert backend.held == []


def _paths(depth: int) -> list[str]:
    return ["".join(steps) for n in range(1, depth + 1) for steps in itertools.product(("a\n", "b\n"), repeat=n)]


async def test_sources_that_are_not_counted_cost_no_calls() -> None:
    result = await search("rule", budget=Budget(reward_calls=1, expansions=6))
    assert (result.reward_calls, result.stop_reason) == (0, "expansions")


async def test_calls_reserved_for_ends_are_given_back() -> None:
    """Children that the task rewards need no value: what was reserved for them can be spent on others."""
    backend = TreeBackend({"": {"a\n": 1.0}, "a\n": {"b\n": 1.0}})
    session = Session(
        Puzzle({"a\nb\n": 0.0}), backend, Budget(reward_calls=2), 0, values=CallableValues(lambda prompt, text: 0.5)
    )
    await session.open()
    async with Flights[str](session, 1.0) as flights:
        assert flights.start("one", session.root, 5, (), 0) == 2
        assert flights.start("two", session.root, 1, (), 1) == 0
        [landing] = await flights.landed()
        assert session.meter.reward_calls == 2
        assert session.meter.spent == "reward_calls"
        assert [thought.value for thought in landing.thoughts] == [0.5, 0.5]
    await session.close()
    assert backend.held == []

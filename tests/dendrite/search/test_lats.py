from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.engine.engine import Engine
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.budget import Budget
from dendrite.search.events import ExpansionDone, SearchEvent, TerminalFound
from dendrite.search.lats import Lats, LatsOptions
from dendrite.search.run import run_search, run_search_async
from dendrite.search.session import Session
from dendrite.search.tasks.countdown import Countdown
from dendrite.search.trace import read_lines
from dendrite.search.tree import SearchNode
from tests.dendrite.search.frontier import (
    Distinct,
    World,
    budgets,
    check_the_budget_is_used,
    check_the_rules,
    worlds,
)
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, leaves, uniform

PLENTY = Budget(tokens=10**5)


PROMPT = re.compile(r"\?(\nWhat an earlier attempt has taught: [^\n]*\n|<[^>]*>|[xy]+!)*")
"""With the default template, and those of the tests."""


@dataclass(frozen=True)
class Lesson(Puzzle):
    """A puzzle that asks after its failures."""

    question: str | None = "why?"

    def reflect(self, text: str) -> str | None:
        return self.question


class Learner(TreeBackend):
    """What it writes depends on the lessons in the prompt: `lessons` maps a part of the prompt to a table.

    Paths begin after the prompt, whatever that is. After a question it says what `sayings` has for the path.
    """

    def __init__(self, lessons: Mapping[str, Table], sayings: Mapping[str, str], values: Any = None, **more: Any):
        super().__init__({}, values, **more)
        self.lessons = lessons
        self.sayings = sayings
        self.prompts: dict[int, str] = {}
        self.asked: list[str] = []
        """Texts of the paths that were asked about, each with its question."""

    async def prefill(self, prompt: Any, *, seed: int | None = None) -> Any:
        await asyncio.sleep(0)
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        self.prefilled.append(text)
        prompt = PROMPT.match(text)
        assert prompt is not None
        node = self._make(text[prompt.end() :], None)
        self.prompts[node] = prompt.group()
        return node

    async def append(self, node: Any, continuations: Any) -> Any:
        branches = await super().append(node, continuations)
        self.asked += [self.places[branch.node].text for branch in branches]
        return branches

    def _sample(self, kid: int, index: int, params: Any) -> Any:
        place = self.places[kid]
        if place.text in self.asked:
            self.table = {place.text: {self.sayings.get(place.text.partition("?")[0], ""): 1.0}}
        else:
            prompt = self._prompt(kid)
            self.table = next((table for part, table in self.lessons.items() if part in prompt), {})
        return super()._sample(kid, index, params)

    def _prompt(self, node: int) -> str:
        while (parent := self.places[node].parent) is not None:
            node = parent
        return self.prompts[node]


WRONG: Table = {"": uniform("a\n"), "a\n": uniform("b\n", "c\n")}
RIGHT: Table = {"": uniform("x\n"), "x\n": uniform("y\n")}
FAILURES = {"a\nb\n": 0.0, "a\nc\n": 0.2}


def learner(**more: Any) -> Learner:
    """Only with the lesson of the better failure does the model write x and y, which is the solution."""
    sayings = {"a\nb\nwhy": "hm", "a\nc\nwhy": "try x"}
    return Learner({"try x": RIGHT, "": WRONG}, sayings, {}, **more)


async def test_only_what_was_learnt_leads_to_the_solution() -> None:
    backend = learner()
    puzzle = Lesson({**FAILURES, "x\ny\n": 1.0})
    result = await run_search_async(puzzle, backend, "lats", PLENTY)
    assert (result.text, result.solved, result.stop_reason) == ("x\ny\n", True, "solved")
    assert (backend.held, backend.running) == ([], 0)
    assert backend.prefilled[0] == "?"
    assert len(backend.prefilled) == 2
    assert "try x" in backend.prefilled[1]


async def test_a_question_goes_after_the_failed_path_itself() -> None:
    backend = learner()
    await run_search_async(Lesson({**FAILURES, "x\ny\n": 1.0}), backend, "lats", PLENTY)
    assert sorted(backend.asked) == ["a\nb\nwhy?", "a\nc\nwhy?"]
    assert not any(text in FAILURES for text, _, _ in backend.calls), "an end is never expanded"


async def test_without_a_question_of_the_task_the_default_one_is_asked() -> None:
    backend = learner()
    puzzle = Lesson({**FAILURES, "x\ny\n": 1.0}, question=None)
    await run_search_async(puzzle, backend, "lats", Budget(tokens=60), reflection_prompt="and now?")
    assert set(backend.asked) >= {"a\nb\nand now?", "a\nc\nand now?"}
    with pytest.raises(InvalidArgument, match="reflect='': a question must not be empty"):
        await run_search_async(Lesson(FAILURES, question=""), learner(), "lats", PLENTY)


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_each_lesson_is_in_the_prompt_once_and_only_the_last_ones(most: int) -> None:
    """Two failures a tree, one of them always with the same lesson."""
    names = {"": "0"} | {f"say {index}": str(index + 1) for index in range(9)}
    lessons = {
        part: {"": uniform(f"{name}\n"), f"{name}\n": uniform("b\n", "c\n")} for part, name in reversed(names.items())
    }
    sayings = {f"{index}\nb\nwhy": "  the same " for index in range(9)}
    sayings |= {f"{index}\nc\nwhy": f"say {index}\n" for index in range(9)}
    backend = Learner(lessons, sayings, {})
    rewards = {f"{index}\n{last}\n": 0.0 for index in range(9) for last in "bc"}
    await run_search_async(
        Lesson(rewards), backend, "lats", Budget(tokens=400), reflections=most, template="<{reflection}>"
    )
    assert len(backend.prefilled) > 3
    for prompt in backend.prefilled:
        said = prompt.removeprefix("?").removeprefix("<").removesuffix(">").split("><")
        assert len(said) <= most
        assert len(set(said)) == len(said)
        new = [each for each in said if each.startswith("say")]
        assert new == sorted(new), "the oldest first"
        assert prompt == "?" + "".join(f"<{each}>" for each in said if each)
    for tree in range(1, 4):
        assert len(backend.prefilled[tree].split("><")) == min(most, 1 + tree), "each tree adds one that is new"


async def test_no_more_failures_are_reflected_on_than_fit_the_prompt() -> None:
    ends = dict.fromkeys(leaves(3), 0.0)
    for failures, reflections in ((1, 3), (4, 2), (8, 8)):
        backend = Learner({"": binary(3)}, dict.fromkeys(ends, ""), {})
        session = Session(Lesson(ends), backend, PLENTY, 0)
        search = Lats(session, LatsOptions(failures=failures, reflections=reflections, in_flight=1, children=9))
        await session.open()
        search.tree = tree = SearchNode(session.root)
        await search._grow(tree)
        failed = len(search._failed)
        assert failed >= failures
        await session.flush()
        kept = [text for text in backend.held if text in ends]
        assert len(kept) == min(failed, reflections), "the others are given up"
        await search._start_over(tree)
        assert sorted(backend.asked) == sorted(f"{text}why?" for text in kept)
        await session.close()
        assert backend.held == []


async def grown(puzzle: Puzzle, backend: TreeBackend, budget: Budget, seed: int = 0, **options: Any) -> Lats:
    """One tree, grown until it has failed or the budget is spent."""
    session = Session(puzzle, backend, budget, seed)
    search = Lats(session, LatsOptions(**options))
    try:
        await session.open()
        search.tree = SearchNode(session.root)
        await search._grow(search.tree)
    finally:
        await session.close()
    return search


async def test_the_statistics_by_hand() -> None:
    """Four draws at the root: three say a, one says b, whose value is greater but not by enough.

    a: 0.5 * 0.4 + 0.5 * 0.75 = 0.575, b: 0.5 * 0.6 + 0.5 * 0.25 = 0.425. From a, the simulation ends with 0.2.
    """
    table: Table = {"": {"a\n": 0.7, "b\n": 0.3}, "a\n": uniform("end\n"), "b\n": uniform("end\n")}
    values = {"a\n": 0.4, "b\n": 0.6}
    puzzle = Puzzle({"a\nend\n": 0.2, "b\nend\n": 0.0})
    for seed in range(40):
        backend = TreeBackend(table, values)
        search = await grown(puzzle, backend, Budget(expansions=2), seed, children=4, in_flight=1)
        tree = search.tree
        assert tree is not None
        steps = {child.thought.step: child.stats for child in tree.children}
        drawn = sum(place.text == "a\n" for place in backend.places.values())
        if drawn == 3:
            break
    assert drawn == 3
    assert (steps["a\n"].visits, steps["b\n"].visits, tree.stats.visits) == (2, 1, 3)
    assert steps["a\n"].total == pytest.approx(0.575 + 0.2)
    assert steps["b\n"].total == pytest.approx(0.425)
    assert tree.stats.total == pytest.approx(0.575 + 0.2 + 0.425)
    assert [text for text, _, _ in backend.calls] == ["", "a\n"]
    assert [failed.text for failed in search._failed] == ["a\nend\n"]
    # UCT: b has 0.425 + 1.414 * sqrt(ln 3) = 1.907, a 0.3875 + 1.414 * sqrt(ln 3 / 2) = 1.436.
    first, second = search._ranked(tree)
    assert (first.thought.step, second.thought.step) == ("b\n", "a\n")
    assert search.options.c == math.sqrt(2)


@pytest.mark.parametrize(("weight", "first"), [(0.0, 0.75), (0.5, 0.575), (1.0, 0.4)])
async def test_the_weight_of_value_and_agreement(weight: float, first: float) -> None:
    table: Table = {"": {"a\n": 0.7, "b\n": 0.3}}
    for seed in range(40):
        backend = TreeBackend(table, {"a\n": 0.4, "b\n": 0.6})
        search = await grown(
            Puzzle({}), backend, Budget(expansions=1), seed, children=4, value_weight=weight, simulate=False
        )
        assert search.tree is not None
        if sum(place.text == "a\n" for place in backend.places.values()) == 3:
            break
    means = {child.thought.step: child.stats.mean for child in search.tree.children}
    assert means["a\n"] == pytest.approx(first)
    assert means["b\n"] == pytest.approx(weight * 0.6 + (1 - weight) * 0.25)


async def test_without_a_weight_no_value_is_needed() -> None:
    with pytest.raises(InvalidArgument, match=r"value_weight=0\.5: goes by values.*no value head"):
        await run_search_async(Puzzle({}), TreeBackend(binary(3)), "lats", PLENTY)
    backend = TreeBackend(binary(3))
    result = await run_search_async(Puzzle({leaves(3)[5]: 1.0}), backend, "lats", Budget(tokens=2000), value_weight=0.0)
    assert result.solved


async def test_an_end_counts_with_its_reward_and_a_simulation_with_that_of_its_end() -> None:
    table: Table = {"": uniform("go\n"), "go\n": uniform("on\n"), "go\non\n": uniform("end\n")}
    puzzle = Puzzle({"go\non\nend\n": 0.3})
    search = await grown(puzzle, TreeBackend(table, {}), Budget(expansions=3), children=1, in_flight=1)
    assert search.tree is not None
    [child] = search.tree.children
    # Value 0.5, and all of one draw agrees: 0.75; then the reward.
    assert (child.stats.visits, child.stats.total) == (2, pytest.approx(0.75 + 0.3))
    assert child.children == []
    assert search.nodes == 2, "a simulation adds no nodes"
    best = search.best()
    assert best is not None
    assert best.text == "go\non\nend\n"


async def test_statistics_add_up_and_nothing_stays_in_flight() -> None:
    for in_flight in (1, 3, 16):
        for expansions in (1, 5, 17, 60):
            ends = dict.fromkeys(leaves(5), 0.1)
            search = await grown(
                Puzzle(ends), TreeBackend(binary(5), {}), Budget(expansions=expansions), in_flight=in_flight, failures=9
            )
            assert search.tree is not None
            for node in search.tree.places:
                assert (node.stats.in_flight, node.pending) == (0, 0)
                assert node.stats.visits >= sum(child.stats.visits for child in node.children)
            assert search.tree.stats.visits == sum(child.stats.visits for child in search.tree.children)


async def test_values_alone_need_no_simulation() -> None:
    target = leaves(6)[41]
    values = {path: 0.9 if target.startswith(path) else 0.1 for path in binary(6)}
    backend = TreeBackend(binary(6), values)
    puzzle = Puzzle({leaf: float(leaf == target) for leaf in leaves(6)})
    result = await run_search_async(puzzle, backend, "lats", PLENTY, simulate=False, failures=99, c=0.3)
    assert result.solved
    assert all(n > 1 for _, n, _ in backend.calls)


async def test_a_tree_that_has_failed_takes_what_is_in_flight_in_before_the_next() -> None:
    """No call is cancelled on the way, so that every token decoded is counted."""
    ends = dict.fromkeys(leaves(4), 0.0)
    backend = Learner({"": binary(4)}, dict.fromkeys(ends, "no"), {})
    result = await run_search_async(Lesson(ends), backend, "lats", Budget(tokens=3000), in_flight=16, failures=1)
    assert result.tokens == backend.decoded == 3000
    assert len(backend.prefilled) > 3


@dataclass(frozen=True)
class Exam(Lesson):
    @property
    def oracle(self) -> bool:
        return True


async def test_where_rewards_are_hidden_there_is_nothing_to_reflect_on() -> None:
    values = dict.fromkeys(leaves(3), 0.1) | {leaves(3)[2]: 0.9}
    exam = Exam(dict.fromkeys(leaves(3), 0.0) | {leaves(3)[5]: 1.0})
    backend, events = Distinct(binary(3), values), list[SearchEvent]()
    result = await run_search_async(exam, backend, "lats", PLENTY, on_event=events.append, children=8)
    assert (result.text, result.stop_reason, result.solved) == (leaves(3)[2], "exhausted", False)
    assert (len(backend.prefilled), backend.held) == (1, [])
    assert {event.reward for event in events if isinstance(event, TerminalFound)} == {None}
    seen = await run_search_async(exam, Distinct(binary(3), values), "lats", PLENTY, oracle=True)
    assert (seen.solved, seen.stop_reason, seen.oracle) == (True, "solved", True)


async def test_a_reflection_is_no_end_and_its_tokens_count() -> None:
    backend, events = learner(), list[SearchEvent]()
    puzzle = Lesson({**FAILURES, "x\ny\n": 1.0, "hm": 1.0, "a\nb\nhm": 1.0, "a\nb\nwhy?hm": 1.0})
    result = await run_search_async(puzzle, backend, "lats", PLENTY, on_event=events.append, in_flight=1)
    ends = {event.text for event in events if isinstance(event, TerminalFound)}
    assert ends == {"a\nb\n", "a\nc\n", "x\ny\n"}
    assert result.text == "x\ny\n"
    assert result.tokens == backend.decoded
    assert result.expansions == len(backend.calls) == sum(isinstance(event, ExpansionDone) for event in events)
    limits = {params.max_tokens for text, _, params in backend.calls if text.endswith("?")}
    stops = {params.stop for text, _, params in backend.calls if text.endswith("?")}
    assert (limits, stops) == ({128}, {()})


async def test_a_long_reflection_is_cut() -> None:
    backend = Learner({"": WRONG}, {"a\nb\nwhy": "x" * 50, "a\nc\nwhy": "y" * 50}, {})
    await run_search_async(
        Lesson(FAILURES), backend, "lats", Budget(tokens=200), reflection_tokens=7, template="{reflection}!"
    )
    assert backend.prefilled[1] in ("?xxxxxxx!yyyyyyy!", "?yyyyyyy!xxxxxxx!")


@settings(max_examples=60)
@given(
    world=worlds(),
    options=st.fixed_dictionaries(
        {
            "children": st.integers(1, 5),
            "simulate": st.booleans(),
            "failures": st.integers(1, 5),
            "reflections": st.integers(1, 3),
            "in_flight": st.integers(1, 6),
        }
    ),
    budget=budgets,
    seed=st.integers(0, 99),
)
async def test_whatever_the_world_the_rules_hold(
    world: World, options: dict[str, Any], budget: Budget, seed: int
) -> None:
    await check_the_rules(world, "lats", budget, seed, options)


@pytest.mark.parametrize("tokens", [1, 7, 50, 400])
async def test_the_budget_is_used(tokens: int) -> None:
    await check_the_budget_is_used("lats", tokens)


async def test_memory_is_kept_low_over_many_trees() -> None:
    ends = dict.fromkeys(leaves(3), 0.0)

    class Watched(Learner):
        most_held = 0

        async def expand(self, node: Any, n: int, params: Any) -> Any:
            self.most_held = max(self.most_held, len(self.held))
            return await super().expand(node, n, params)

    backend = Watched({"": binary(3)}, dict.fromkeys(ends, "no"), {})
    await run_search_async(Lesson(ends), backend, "lats", Budget(tokens=4000), in_flight=2, children=2)
    assert len(backend.prefilled) > 20
    assert backend.most_held < 40


@pytest.mark.parametrize("failing", [0, 1, 2, 3, 4, 5])
async def test_a_full_context_is_the_end_of_a_path_or_of_a_question(failing: int) -> None:
    backend = learner(failures={failing: ContextOverflow(100, 90)})
    result = await run_search_async(
        Lesson({**FAILURES, "x\ny\n": 1.0}), backend, "lats", Budget(tokens=500), in_flight=1
    )
    assert (backend.held, backend.running) == ([], 0)
    assert result.solved or result.stop_reason in ("tokens", "exhausted")


async def test_a_prompt_too_long_for_its_lessons_ends_the_search() -> None:
    class Short(Learner):
        async def prefill(self, prompt: Any, *, seed: int | None = None) -> Any:
            if len(prompt) > 20:
                raise ContextOverflow(len(prompt), 20)
            return await super().prefill(prompt, seed=seed)

    backend = Short({"": WRONG}, {"a\nb\nwhy": "x" * 50, "a\nc\nwhy": "y" * 50}, {})
    result = await run_search_async(Lesson(FAILURES), backend, "lats", PLENTY)
    assert (result.text, result.stop_reason, backend.held) == ("a\nc\n", "exhausted", [])


async def test_a_prompt_that_is_its_own_answer_costs_nothing() -> None:
    backend = TreeBackend({"": uniform("a\n")}, {})
    for reward in (1.0, 0.5):
        result = await run_search_async(Puzzle({"": reward}), backend, "lats")
        assert (result.reward, result.tokens, result.nodes, backend.calls) == (reward, 0, 1, [])


async def test_seeds_are_all_different_and_a_search_replays() -> None:
    ends = dict.fromkeys(leaves(4), 0.0)
    runs = []
    for _ in range(2):
        backend = Learner({"": binary(4)}, dict.fromkeys(ends, "no"), {})
        result = await run_search_async(Lesson(ends), backend, "lats", Budget(tokens=2000), 5)
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls, backend.prefilled))
        seeds = [params.seed for _, _, params in backend.calls]
        assert len(set(seeds)) == len(seeds)
        assert len(backend.prefilled) > 2
    assert runs[0] == runs[1]


async def test_a_killed_search_is_taken_up_again_wherever_it_was(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    puzzle = Lesson({**FAILURES, "x\ny\n": 0.9, "x\nz\n": 0.1})
    budget, lessons = Budget(tokens=110), {"try x": {**RIGHT, "x\n": uniform("y\n", "z\n")}, "": WRONG}
    sayings = {"a\nb\nwhy": "hm", "a\nc\nwhy": "try x", "x\nz\nwhy": "no z", "x\ny\nwhy": "no y"}
    whole = await run_search_async(puzzle, Learner(lessons, sayings, {}), "lats", budget, 1, trace=path)
    data = path.read_bytes()
    events = [event for _, event in read_lines(path)]
    assert sum(event["event"] == "root" for event in events) > 2
    expected = [{**event, "time": 0} for event in events if event["event"] == "children"]
    ends = [end for end, _ in read_lines(path)]
    for end in ends[:-1]:
        path.write_bytes(data[: end + 5])
        backend = Learner(lessons, sayings, {})
        again = await run_search_async(puzzle, backend, "lats", budget, 1, trace=path, resume=True)
        assert {**again.to_dict(), "seconds": 0} == {**whole.to_dict(), "seconds": 0}
        assert (backend.held, backend.running) == ([], 0)
        found = [{**event, "time": 0} for _, event in read_lines(path) if event["event"] == "children"]
        assert found == expected


async def test_reflections_are_on_record_below_the_ends_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    puzzle = Lesson({**FAILURES, "x\ny\n": 1.0})
    await run_search_async(puzzle, learner(), "lats", PLENTY, trace=path)
    children = [event for _, event in read_lines(path) if event["event"] == "children"]
    made = {child["node"]: child for event in children for child in event["children"]}
    said = {
        (made[event["node"]]["text"], child["text"]): child
        for event in children
        for child in event["children"]
        if event["node"] in made and made[event["node"]]["ended"]
    }
    assert set(said) == {("b\n", "hm"), ("c\n", "try x")}
    assert {(child["reward"], child["ended"]) for child in said.values()} == {(None, True)}


async def test_cancelled_midway_it_tells_what_it_had() -> None:
    ends = dict.fromkeys(leaves(4), 0.1)
    for ticks in (0, 3, 12, 40, 90, 150, 151, 152, 153):
        backend = Learner({"": binary(4)}, dict.fromkeys(ends, "no"), {})
        session = Session(Lesson(ends), backend, PLENTY, 3)
        search = Lats(session, LatsOptions())
        assert (search.best(), search.nodes) == (None, 1)
        await session.open()
        running = asyncio.create_task(search.run())
        for _ in range(ticks):
            await asyncio.sleep(0)
        best = search.best()
        assert ticks < 12 or (best is not None and best.depth > 0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await session.close()
        assert (backend.held, backend.running) == ([], 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"template": "none"}, "template='none': .*{reflection} once"),
        ({"template": "{reflection}{reflection}"}, "template=.*once"),
        ({"reflection_prompt": ""}, "reflection_prompt=''"),
        ({"value_weight": 1.5}, "value_weight=1.5"),
        ({"failures": 0}, "failures=0"),
    ],
)
async def test_options_that_cannot_be_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        await run_search_async(Puzzle({}), TreeBackend({}), "lats", PLENTY, **options)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384, debug_checks=True) as engine:
        yield engine


def test_on_the_engine_it_solves_replays_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    task = Countdown((9, 40, 71, 72), target=174)
    result = run_search(task, engine, "lats", Budget(tokens=400), 1)
    assert (result.solved, task.reward(result.text)) == (True, 1.0)
    hopeless = Countdown((2, 4, 6, 8), target=999)
    options: dict[str, Any] = {"failures": 1, "reflection_tokens": 4, "template": "{reflection}"}
    path = tmp_path / "trace.jsonl"
    runs = [run_search(hopeless, engine, "lats", Budget(tokens=100), seed, trace=path, **options) for seed in (4, 3, 3)]
    results = [{**run.to_dict(), "seconds": 0.0} for run in runs]
    assert results[0] != results[1] == results[2]
    assert all(run.tokens <= 100 for run in runs)
    prompts = [event["tokens"] for _, event in read_lines(path) if event["event"] == "root"]
    assert len(prompts) > 1
    assert all(prompt[: len(prompts[0])] == prompts[0] for prompt in prompts)
    assert max(map(len, prompts)) > len(prompts[0]), "something was said"
    stats = engine.stats()
    assert (stats.pages_held, stats.running, stats.waiting) == (0, 0, 0)
    engine.check()

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dendrite.engine.engine import Engine
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search import Budget, run_search, run_search_async
from dendrite.search import frontier as toolkit
from dendrite.search.events import SearchEvent, TerminalFound
from dendrite.search.flights import Flights
from dendrite.search.frontier import Draws, Site, places, release, worth_of
from dendrite.search.session import Session
from dendrite.search.tasks.countdown import Countdown
from dendrite.search.thought import Thought
from tests.dendrite.search.frontier import Distinct
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary, uniform

SURE = {"": {"a\n": 0.9, "b\n": 0.04, "c\n": 0.04, "d\n": 0.02}}

SMALL: dict[str, dict[str, int]] = {
    "self_consistency": {"n": 8},
    "particle_filter": {"n": 8},
    "tot_bfs": {"b": 3, "k": 3},
    "tot_dfs": {},
}
"""Options with which three lines fit 400 tokens."""


async def draw(
    backend: TreeBackend,
    want: int,
    budget: Budget,
    puzzle: Puzzle | None = None,
    rule: toolkit.Distinct | None = toolkit.DISTINCT,
) -> Site:
    """Draw the root's children, as far as that goes."""
    session = Session(puzzle or Puzzle({}), backend, budget, 5)
    await session.open()
    site = Site(session.root, want)
    async with Flights[Site](session, 1.0) as flights:
        await Draws(session, flights, rule).level([site])
    await session.flush()
    return site


def steps(site: Site) -> list[str]:
    return [child.thought.step for child in site.children]


class Stubborn(TreeBackend):
    """Writes but one text, and gives it a probability of one half."""

    def _sample(self, kid: int, index: int, params: Any) -> Any:
        self.table = {"": {"a\n": 0.5}}
        return super()._sample(kid, index, params)


@pytest.mark.parametrize("want", [1, 2, 3, 4])
async def test_children_differ_however_sure_the_model_is(want: int) -> None:
    backend = Distinct(SURE)
    site = await draw(backend, want, Budget(tokens=10_000))
    assert len(set(steps(site))) == len(site.children) == want
    assert site.missing == 0
    assert [child.path for child in site.children] == [(index,) for index in range(want)]
    assert sorted(backend.held) == sorted(["", *steps(site)]), "repeats are released"
    assert backend.calls[0][1:2] == (want,)
    for index, (_, n, params) in enumerate(backend.calls[1:], 1):
        assert n == want - len(params.without), "what is missing is asked for, and the known is left out"
        assert params.seed != backend.calls[index - 1][2].seed


async def test_no_more_is_drawn_than_the_model_has() -> None:
    site = await draw(backend := Distinct(SURE), 9, Budget(tokens=10_000))
    assert sorted(steps(site)) == ["a\n", "b\n", "c\n", "d\n"]
    assert (site.missing, site.exhausted, len(backend.calls) < 6) == (0, True, True)


@pytest.mark.parametrize(("patience", "calls"), [(None, [3, 2]), (1, [3]), (3, [3, 2]), (5, [3, 2, 2])])
async def test_a_backend_that_repeats_itself_is_not_asked_for_ever(patience: int | None, calls: list[int]) -> None:
    """Draws repeat from the second on: 2 in the first call, 4 with the second, 6 with the third."""
    backend = Stubborn({})
    site = await draw(backend, 3, Budget(tokens=10_000), rule=toolkit.Distinct(patience=patience))
    assert (steps(site), site.missing, [n for _, n, _ in backend.calls]) == (["a\n"], 0, calls)


@pytest.mark.parametrize("least", [0.01, 0.03, 0.07, 0.2])
async def test_no_more_is_drawn_once_the_model_hardly_gives_anything_else(least: float) -> None:
    """Children are asked for one at a time, and the last is the first that leaves less than `least`."""
    session = Session(Puzzle({}), Distinct(SURE), Budget(tokens=10_000), 5)
    await session.open()
    site = Site(session.root)
    async with Flights[Site](session, 1.0) as flights:
        draws = Draws(session, flights, toolkit.Distinct(min_unseen=least))
        for site.want in range(1, 6):
            await draws.level([site])
    left = 1 - sum(SURE[""][step] for step in steps(site))
    assert left < least <= left + SURE[""][steps(site)[-1]]


async def test_without_a_rule_each_child_is_drawn_on_its_own() -> None:
    backend = Distinct(SURE)
    site = await draw(backend, 9, Budget(tokens=10_000), rule=None)
    assert (len(site.children), len(set(steps(site))) < 9, len(backend.calls)) == (9, True, 1)
    assert backend.calls[0][2].without == ()


async def test_what_the_budget_has_no_room_for_stays_missing() -> None:
    site = await draw(Distinct(SURE), 4, Budget(expansions=1))
    assert site.missing == 4 - len(site.children) > 0
    await draw(backend := Distinct(SURE), 4, Budget(tokens=20), Puzzle({}, step_tokens=8))
    assert backend.calls[0][1] == 2, "a grant may be smaller than what was asked for"
    assert backend.decoded <= 20


async def test_a_full_context_has_no_children() -> None:
    for rule in (toolkit.Distinct(), toolkit.Distinct(patience=9), None):
        site = await draw(Distinct(SURE, failures={0: ContextOverflow(9, 8)}), 4, Budget(tokens=100), rule=rule)
        assert (site.children, site.missing, site.exhausted) == ([], 0, True)
        assert list(toolkit.leaves(site)) == [site]


def test_a_site_adds_up_its_path() -> None:
    root = Site(Thought())
    root.children = [Site(Thought(1, tokens=(1,), logprobs=(-1.0,)), parent=root)]
    site = Site(Thought(2, tokens=(5, 6), logprobs=(-0.5, -1.0)), parent=root.children[0])
    assert (site.path, site.logprob, site.length) == ((0, 0), -2.5, 3)
    assert Site(Thought(3), parent=root).path == (1,)


def test_an_end_is_worth_its_reward_and_other_paths_their_estimate() -> None:
    assert worth_of(Thought(1, value=0.7, reward=0.2, ended=True), ("score", "value")) == 0.2
    assert worth_of(Thought(1, value=0.7), ("score", "value")) == 0.7
    assert worth_of(Thought(1, value=0.7, ended=True), ("score", "value")) == 0.7, "a hidden reward"
    assert worth_of(Thought(1, reward=0.0, ended=True), ("score", "value")) == 0.0
    with pytest.raises(InvalidArgument, match="algorithm='tot_bfs': goes by values"):
        worth_of(Thought(1), ("algorithm", "tot_bfs"))


async def level(
    backend: TreeBackend, budget: Budget, rewards: dict[str, float] | None = None
) -> tuple[Site, bool, list[Site]]:
    """Draw the root's four children, then four below each; tells whether that was done, and what was seen to come."""
    session = Session(Puzzle(rewards or {}), backend, budget, 0)
    await session.open()
    root, seen = Site(session.root, 4), list[Site]()
    try:
        async with Flights[Site](session, 1.0) as flights:
            draws = Draws(session, flights, distinct=None)
            whole = await draws.level([root], seen.extend)
            for child in root.children:
                child.want = 4
            return root, whole and await draws.level(root.children, seen.extend), seen
    finally:
        await session.close()


async def test_a_level_is_one_batch() -> None:
    backend = TreeBackend(binary(2), {})
    root, whole, seen = await level(backend, Budget(tokens=1000))
    assert whole
    assert [(n, params.seed is not None) for _, n, params in backend.calls] == [(4, True)] * 5
    assert backend.most_running == 16
    assert [place.path for place in places(root)][:3] == [(), (0,), (0, 0)]
    assert [leaf.thought.depth for leaf in toolkit.leaves(root)] == [2] * 16
    assert sorted(site.path for site in seen) == sorted(place.path for place in places(root))[1:]


@pytest.mark.parametrize("tokens", [1, 8, 17, 31, 37])
async def test_a_level_cut_short_by_the_budget_says_so(tokens: int) -> None:
    backend = TreeBackend(binary(2), {})
    root, whole, _ = await level(backend, Budget(tokens=tokens))
    assert not whole
    assert backend.decoded == tokens
    assert sum(1 for _ in places(root)) > 1


async def test_what_did_not_fit_at_first_is_drawn_when_there_is_room() -> None:
    """A thought may take 8 tokens, so that 40 admit 5 at a time, but takes 2: all 20 are drawn in the end."""
    backend = TreeBackend(binary(2), {})
    root, whole, _ = await level(backend, Budget(tokens=48))
    assert whole
    assert [len(child.children) for child in root.children] == [4] * 4
    assert len(backend.calls) > 5
    seeds = [params.seed for _, _, params in backend.calls]
    assert len(set(seeds)) == len(seeds)


async def test_a_solution_ends_the_level() -> None:
    backend = TreeBackend(binary(2), {})
    _, whole, _ = await level(backend, Budget(tokens=1000), {"a\n": 1.0})
    assert not whole
    assert (len(backend.calls), backend.held, backend.running) == (1, [], 0)


async def test_what_is_held_no_more_is_not_released_again() -> None:
    session = Session(Puzzle({}), TreeBackend({}), Budget(tokens=1), 0)
    released: list[int] = []
    session.discard = lambda thought, subtree=False: released.append(thought.id)  # type: ignore[method-assign]
    sites = [Site(Thought(1)), Site(Thought(2, ended=True)), Site(Thought(3))]
    sites[2].exhausted = True
    release(session, sites)
    assert released == [1]


@dataclass(frozen=True)
class Exam(Puzzle):
    """A puzzle whose rewards consult a known answer."""

    @property
    def oracle(self) -> bool:
        return True


FRONTIER: dict[str, dict[str, Any]] = {
    "beam": {"width": 8},
    "dvts": {"subtrees": 2, "branches": 2},
    "rebase": {"width": 8, "balance": 100.0},
    "tot_bfs": {},
    "tot_dfs": {},
    "particle_filter": {"n": 32, "ess": 0.0},
}


@pytest.mark.parametrize("algorithm", [*FRONTIER, "best_of_n"])
@pytest.mark.parametrize("right", ["a\nb\n", "b\na\n"])
async def test_ends_whose_rewards_are_hidden_are_ranked_by_their_values(algorithm: str, right: str) -> None:
    """Of four ends the one of the highest value is the answer, whichever is right; only the result knows that."""
    values = {"a\n": 0.5, "b\n": 0.5, "a\na\n": 0.2, "a\nb\n": 0.8, "b\na\n": 0.4, "b\nb\n": 0.1}
    exam = Exam({end: float(end == right) for end in ("a\na\n", "a\nb\n", "b\na\n", "b\nb\n")})
    backend, ends = Distinct(binary(3), values), list[SearchEvent]()
    result = await run_search_async(
        exam, backend, algorithm, Budget(tokens=1000), on_event=ends.append, **FRONTIER.get(algorithm, {"n": 32})
    )
    assert (result.text, result.solved, result.oracle) == ("a\nb\n", right == "a\nb\n", False)
    assert result.stop_reason == "exhausted", "it can't have stopped at what it may not see"
    rewards = {event.reward for event in ends if isinstance(event, TerminalFound)}
    assert rewards == {None}
    assert (backend.held, backend.running) == ([], 0)
    assert not any(text in exam.rewards for text, _, _ in backend.calls), "an end is never expanded"


@pytest.mark.parametrize("algorithm", FRONTIER)
async def test_an_end_with_a_hidden_reward_answers_sooner_than_what_is_unfinished(algorithm: str) -> None:
    backend = Distinct({"": uniform("end\n", "go\n"), "go\n": uniform("on\n")}, {"end\n": 0.3, "go\n": 0.9})
    result = await run_search_async(Exam({"end\n": 0.0}), backend, algorithm, Budget(expansions=1), values="head")
    assert result.text == "end\n"


async def test_beam_by_probability_prefers_an_end_with_a_hidden_reward() -> None:
    backend = Distinct({"": {"end\n": 0.2, "go\n": 0.8}, "go\n": uniform("on\n")})
    budget = Budget(expansions=1)
    result = await run_search_async(Exam({"end\n": 0.0}), backend, "beam", budget, score="logprob", branches=8)
    assert result.text == "end\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384, debug_checks=True) as engine:
        yield engine


def untimed(result: Any) -> dict[str, Any]:
    return {**result.to_dict(), "seconds": 0.0}


@pytest.mark.parametrize("algorithm", list(SMALL))
def test_a_search_on_the_engine_solves_replays_and_leaves_nothing(engine: Engine, algorithm: str) -> None:
    task = Countdown((9, 40, 71, 72), target=174)
    result = run_search(task, engine, algorithm, Budget(tokens=400), 1, **SMALL[algorithm])
    assert (result.solved, task.reward(result.text)) == (True, 1.0)
    assert result.tokens <= 400
    hopeless = Countdown((2, 4, 6, 8), target=999)
    runs = [run_search(hopeless, engine, algorithm, Budget(tokens=80), seed) for seed in (3, 3, 4)]
    assert untimed(runs[0]) == untimed(runs[1])
    assert untimed(runs[0]) != untimed(runs[2])
    stats = engine.stats()
    assert (stats.pages_held, stats.running, stats.waiting) == (0, 0, 0)
    assert (stats.recomputed_tokens, stats.retips, stats.preemptions) == (0, 0, 0)
    engine.check()

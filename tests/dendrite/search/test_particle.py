from __future__ import annotations

import asyncio
import math
from collections import Counter
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search import Budget, run_search_async
from dendrite.search.frontier import places
from dendrite.search.particle import (
    ParticleFilter,
    ParticleFilterOptions,
    effective_sample_size,
    log_odds,
    softmax,
    systematic_counts,
)
from dendrite.search.session import Session
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary, leaves, uniform

WRONG = dict.fromkeys(leaves(3), 0.0)

weight_lists = st.lists(st.just(0.0) | st.floats(1e-9, 1.0), min_size=1, max_size=40).filter(any)
uniforms = st.floats(0.0, 1.0, exclude_max=True)


@given(weights=weight_lists, n=st.integers(1, 300), uniform=uniforms)
def test_systematic_counts_differ_from_their_means_by_less_than_one(
    weights: list[float], n: int, uniform: float
) -> None:
    counts = systematic_counts(weights, n, uniform)
    assert sum(counts) == n
    total = sum(map(Fraction, weights))
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - n * Fraction(weight) / total) < 1 + Fraction(1, 10**9)
        assert count >= 0
        assert weight > 0 or count == 0


@given(n=st.integers(1, 99), uniform=uniforms)
def test_equal_weights_are_drawn_once_each(n: int, uniform: float) -> None:
    assert systematic_counts([1.0] * n, n, uniform) == [1] * n
    assert systematic_counts([0.25] * 4, 4, uniform) == [1, 1, 1, 1]
    assert systematic_counts([0.5, 0.25, 0.25], 8, uniform) == [4, 2, 2]
    assert systematic_counts([0.0, 1.0, 0.0], n, uniform) == [0, n, 0]


def test_systematic_counts_by_hand() -> None:
    """Boundaries at 0.5, 1.8, 4; the draws at u, 1 + u, 2 + u, 3 + u."""
    weights = [0.125, 0.325, 0.55]
    assert systematic_counts(weights, 4, 0.25) == [1, 1, 2]
    assert systematic_counts(weights, 4, 0.6) == [0, 2, 2]
    assert systematic_counts(weights, 4, 0.9) == [0, 1, 3]
    assert systematic_counts([1.0, 1.0], 1, 1.0 - 2**-53) == [0, 1], "rounding loses no draw"


def test_the_law_of_systematic_resampling_by_chi_square() -> None:
    """Over u, count j is the floor or ceiling of n w_j with the mean n w_j; 4,000 draws of u in 4 cells each."""
    weights, n, draws = [0.07, 0.33, 0.18, 0.42], 5, 4000
    rng = Random(0)
    seen = [systematic_counts(weights, n, rng.random()) for _ in range(draws)]
    statistic = 0.0
    for index, weight in enumerate(weights):
        floor, extra = divmod(n * weight, 1)
        cells = Counter(counts[index] for counts in seen)
        assert set(cells) <= {int(floor), int(floor) + 1}
        for cell, share in ((int(floor), 1 - extra), (int(floor) + 1, extra)):
            statistic += (cells[cell] - draws * share) ** 2 / (draws * share)
    assert statistic < 18.5, "the 99.9 % quantile with 4 degrees of freedom"


def test_weights_by_hand() -> None:
    assert log_odds(0.5) == 0.0
    assert log_odds(0.75) == pytest.approx(math.log(3))
    assert log_odds(0.0) == -math.inf
    assert log_odds(1.0) < 17
    assert softmax([log_odds(0.5), log_odds(0.75), log_odds(0.0)]) == pytest.approx([0.25, 0.75, 0.0])
    assert softmax([-math.inf, -math.inf]) == [0.5, 0.5]
    assert softmax([1e5, 0.0]) == [1.0, 0.0]


def test_the_effective_sample_size_by_hand() -> None:
    assert effective_sample_size([0.2, 0.2], [3, 2]) == pytest.approx(5)
    assert effective_sample_size([1.0, 0.0], [2, 9]) == pytest.approx(2)
    assert effective_sample_size([3.0, 1.0], [1, 1]) == pytest.approx(1.6)


async def grow(puzzle: Puzzle, backend: TreeBackend, budget: Budget, seed: int = 0, **options: Any) -> ParticleFilter:
    """Run a search the way `run_search_async` does, but keep the tree."""
    session = Session(puzzle, backend, budget, seed)
    search = ParticleFilter(session, ParticleFilterOptions(**options))
    try:
        await session.open()
        await search.run()
    finally:
        await session.close()
    assert (backend.held, backend.running) == ([], 0)
    return search


def calls_of(backend: TreeBackend, level: int) -> Counter[str]:
    """Children drawn on a level, by the text they follow."""
    drawn: Counter[str] = Counter()
    for text, n, _ in backend.calls:
        if text.count("\n") == level:
            drawn[text] += n
    return drawn


async def test_particles_multiply_where_the_value_is() -> None:
    """Odds of 3 to 1/3 on two equally likely arms: nine in ten go on from the better one."""
    backend = TreeBackend(binary(3), {"a\n": 0.75, "b\n": 0.25})
    await grow(Puzzle(WRONG), backend, Budget(tokens=10_000), n=64)
    first = Counter(place.text for place in backend.places.values() if place.text in ("a\n", "b\n"))
    assert first.total() == 64
    mean = 64 * 3 * first["a\n"] / (3 * first["a\n"] + first["b\n"] / 3)
    assert calls_of(backend, 1)["a\n"] == pytest.approx(mean, abs=8)
    assert [calls_of(backend, level).total() for level in range(3)] == [64, 64, 64]


async def test_a_low_weight_temperature_trusts_the_value() -> None:
    backend = TreeBackend(binary(3), {"a\n": 0.6, "b\n": 0.4})
    await grow(Puzzle(WRONG), backend, Budget(tokens=10_000), weight_temperature=0.05)
    assert calls_of(backend, 1) == {"a\n": 16}
    backend = TreeBackend(binary(3), {"a\n": 0.6, "b\n": 0.4})
    await grow(Puzzle(WRONG), backend, Budget(tokens=10_000), n=400, weight_temperature=1000)
    assert calls_of(backend, 1)["b\n"] == pytest.approx(200, abs=40)


async def test_resampling_waits_for_unequal_weights() -> None:
    """Half the weights are 9 times the others: the effective size is 61 % of the particles."""
    table, values = binary(3), {"a\n": 0.75, "b\n": 0.25}

    async def second(ess: float) -> Counter[str]:
        backend = TreeBackend(table, values)
        search = await grow(Puzzle(WRONG), backend, Budget(tokens=10_000), n=200, ess=ess)
        assert search.nodes == 601
        return calls_of(backend, 1)

    never, seldom, often = await second(0.0), await second(0.5), await second(0.8)
    assert never == seldom
    assert 70 <= never["a\n"] <= 130
    assert often["a\n"] >= 170


async def test_one_batch_a_level_and_forks_of_one_node_in_one_call() -> None:
    backend = TreeBackend(binary(3), {"a\n": 1.0, "b\n": 0.0})
    await grow(Puzzle(WRONG), backend, Budget(tokens=10_000))
    assert backend.calls[0][:2] == ("", 16)
    level = [(text, n) for text, n, _ in backend.calls if text.count("\n") == 1]
    assert {text for text, _ in level} == {"a\n"}
    assert sum(n for _, n in level) == 16
    assert len(level) < 16, "several children of one node"
    assert backend.most_running == 16
    depths = [text.count("\n") for text, _, _ in backend.calls]
    assert depths == sorted(depths), "a step is a barrier"


async def test_an_ended_particle_keeps_its_weight() -> None:
    """Half end at once with a reward of 0.9; the others go on for long, at odds of 9 too: neither group dies out."""
    table = {"": uniform("end\n", "on\n")} | {"on\n" + "x\n" * n: uniform("x\n") for n in range(6)}
    values = {"on\n" + "x\n" * n: 0.9 for n in range(7)}
    search = await grow(Puzzle({"end\n": 0.9}, depth=5), TreeBackend(table, values), Budget(tokens=10_000), n=40)
    ended = sum(site.want for site in search.population if site.thought.text == "end\n")
    assert 10 <= ended <= 30
    assert sum(site.want for site in search.population) == 40


async def test_particles_do_not_stay_where_the_rule_says_no() -> None:
    """The value head is sure of the dead end, but the reward is 0, and the rule is surer."""
    table = {"": uniform("dead\n", "live\n"), "live\n": uniform("x\n")}
    backend = TreeBackend(table, {"dead\n": 1.0, "live\n": 0.01})
    await grow(Puzzle({"dead\n": 0.0}, depth=2), backend, Budget(tokens=10_000))
    assert calls_of(backend, 1) == {"live\n": 16}


async def test_the_answer_ends_the_search() -> None:
    backend = TreeBackend(binary(3), {})
    result = await run_search_async(Puzzle(WRONG | {leaves(3)[5]: 1.0}), backend, "particle_filter", n=64)
    assert (result.text, result.solved, result.stop_reason) == (leaves(3)[5], True, "solved")
    assert (backend.held, backend.running) == ([], 0)


async def test_values_lead_to_the_one_right_leaf_of_many() -> None:
    target = leaves(8)[137]
    table = binary(8)
    values = {text: 0.9 if target.startswith(text) else 0.1 for text in table}
    puzzle = Puzzle({text: float(text == target) for text in leaves(8)})
    result = await run_search_async(puzzle, TreeBackend(table, values), "particle_filter", seed=2)
    assert result.solved
    assert result.tokens <= 16 * 8 * 2


async def test_nodes_without_particles_are_released() -> None:
    class Watched(TreeBackend):
        most_held = 0

        async def expand(self, node: Any, n: int, params: Any) -> Any:
            self.most_held = max(self.most_held, len(self.held))
            return await super().expand(node, n, params)

    backend = Watched(binary(9), {})
    await grow(Puzzle({}, depth=9), backend, Budget(tokens=10_000))
    assert backend.most_held <= 1 + 2 * 16, "the root, and two levels while one follows the other"


async def test_values_are_needed() -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match=r"algorithm='particle_filter': .* no value head"):
        await run_search_async(Puzzle(WRONG), backend, "particle_filter")
    assert backend.held == []


@pytest.mark.parametrize("tokens", [1, 7, 33, 60, 300])
async def test_no_token_beyond_the_budget(tokens: int) -> None:
    backend = TreeBackend(binary(9), {})
    result = await run_search_async(Puzzle({}, depth=9), backend, "particle_filter", Budget(tokens=tokens))
    assert backend.decoded == result.tokens <= tokens
    assert (backend.held, backend.running) == ([], 0)
    assert (result.stop_reason, result.tokens) == (("tokens", tokens) if tokens < 288 else ("exhausted", 288))


async def test_a_full_context_takes_no_particles() -> None:
    backend = TreeBackend(binary(3), {}, failures={1: ContextOverflow(100, 90)})
    search = await grow(Puzzle(WRONG), backend, Budget(tokens=10_000))
    cut = backend.calls[1][0]
    assert sum(n for text, n, _ in backend.calls if text.count("\n") == 2) == 16
    assert search.root is not None
    assert [site.thought.text for site in places(search.root) if site.exhausted] == [cut]
    backend = TreeBackend(binary(3), {}, failures={0: ContextOverflow(100, 90)})
    result = await run_search_async(Puzzle(WRONG), backend, "particle_filter")
    assert (result.stop_reason, result.nodes, result.expansions) == ("exhausted", 1, 1)


async def test_a_prompt_that_is_its_own_answer_costs_nothing() -> None:
    backend = TreeBackend({"": uniform("a\n")}, {})
    result = await run_search_async(Puzzle({"": 1.0}), backend, "particle_filter")
    assert (result.solved, result.tokens, backend.calls) == (True, 0, [])


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), n=st.integers(1, 20), tokens=st.integers(1, 200))
async def test_a_search_replays(seed: int, n: int, tokens: int) -> None:
    runs = []
    for _ in range(2):
        backend = TreeBackend(binary(5), {"a\n": 0.7, "b\na\n": 0.9})
        puzzle = Puzzle(dict.fromkeys(leaves(5), 0.0))
        result = await run_search_async(puzzle, backend, "particle_filter", Budget(tokens=tokens), seed, n=n)
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls))
    assert runs[0] == runs[1]


async def test_seeds_are_all_different() -> None:
    backend = TreeBackend(binary(6), {})
    await grow(Puzzle({}, depth=6), backend, Budget(tokens=100))
    seeds = [params.seed for _, _, params in backend.calls]
    assert len(set(seeds)) == len(seeds)


async def test_cancelled_midway_it_tells_what_it_had() -> None:
    backend = TreeBackend(binary(6), {"a\n": 0.8, "a\nb\n": 0.9})
    session = Session(Puzzle({}, depth=6), backend, Budget(tokens=1000), 3)
    search = ParticleFilter(session, ParticleFilterOptions(n=4))
    assert (search.best(), search.nodes) == (None, 1)
    await session.open()
    running = asyncio.create_task(search.run())
    for _ in range(12):
        await asyncio.sleep(0)
        best = search.best()
    assert best is not None
    assert best.depth > 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await session.close()
    assert (backend.held, backend.running) == ([], 0)

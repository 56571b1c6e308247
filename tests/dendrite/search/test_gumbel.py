from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.search.gumbel import SequentialHalving, halving, improved_policy, perturbed, sigma
from dendrite.search.stats import VisitStats
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode


def tree(probabilities: list[float], values: list[float] | None = None) -> SearchNode:
    """A root whose children have these probabilities, and one visit each if there are values."""
    root = SearchNode(Thought())
    for index, probability in enumerate(probabilities):
        made = Thought(1, f"{index}", f"{index}", 1, (index,), (math.log(probability),))
        child, _ = root.add(made)
        if values is not None:
            child.back_up(values[index])
    return root


@pytest.mark.parametrize(
    ("considered", "simulations", "phases"),
    [
        (4, 16, [(4, 2), (2, 4)]),
        (16, 200, [(16, 3), (8, 6), (4, 12), (2, 28)]),
        (8, 24, [(8, 1), (4, 2), (2, 4)]),
        (2, 10, [(2, 5)]),
        (1, 7, [(1, 7)]),
        (3, 12, [(3, 2), (2, 3)]),
        (16, 4, [(4, 1)]),
        (4, 5, [(4, 1)]),
        (4, 6, [(4, 1), (2, 1)]),
    ],
)
def test_the_schedule_of_sequential_halving(considered: int, simulations: int, phases: list[tuple[int, int]]) -> None:
    """With 4 children and 16 expansions each of the two phases has 8: 2 for each of 4, then 4 for each of 2."""
    assert halving(considered, simulations) == phases


@given(st.integers(1, 300), st.integers(1, 2000))
def test_a_schedule_spends_no_more_than_there_is_and_little_less(considered: int, simulations: int) -> None:
    phases = halving(considered, simulations)
    spent = sum(kept * each for kept, each in phases)
    assert phases
    assert spent <= simulations
    assert all(each >= 1 for _, each in phases)
    assert all(earlier >= later for (earlier, _), (later, _) in pairwise(phases))
    if simulations >= considered * max(1, math.ceil(math.log2(considered))):
        assert simulations - spent < phases[-1][0] <= 3, "what is left does not go round once more"


def test_the_first_perturbed_value_is_a_plain_gumbel_variate() -> None:
    assert perturbed([0.3], [0.5]) == pytest.approx([-math.log(math.log(2))])


def test_the_next_perturbed_value_by_hand() -> None:
    """Located at ln 0.7 and cut off at the first, x solves exp(-exp(-(x - ln .7))) = 0.25 exp(-exp(-(b - ln .7)))."""
    first, second = perturbed([0.3, 0.6], [0.5, 0.25])

    def cumulated(x: float) -> float:
        return math.exp(-math.exp(math.log(0.7) - x))

    assert cumulated(second) / cumulated(first) == pytest.approx(0.25)


@given(st.lists(st.tuples(st.floats(1e-6, 1.0), st.floats(1e-9, 1 - 1e-9)), max_size=20))
def test_perturbed_values_fall_in_the_order_drawn(items: list[tuple[float, float]]) -> None:
    values = perturbed([probability for probability, _ in items], [noise for _, noise in items])
    assert all(map(math.isfinite, values))
    assert values == sorted(values, reverse=True)


def test_drawing_and_perturbing_is_perturbing_all_and_taking_the_top() -> None:
    """Means of the two highest of log P + Gumbel, either way, over many samples."""
    rng, policy, n = Random(1), [0.5, 0.3, 0.15, 0.05], 20_000
    direct, drawn = [0.0, 0.0], [0.0, 0.0]
    for _ in range(n):
        top = sorted((math.log(p) - math.log(-math.log(rng.random())) for p in policy), reverse=True)
        first = rng.choices(range(4), policy)[0]
        rest = [p if index != first else 0.0 for index, p in enumerate(policy)]
        second = rng.choices(range(4), rest)[0]
        values = perturbed([policy[first], policy[second]], [rng.random(), rng.random()])
        for place in range(2):
            direct[place] += top[place] / n
            drawn[place] += values[place] / n
    assert drawn == pytest.approx(direct, abs=0.03)


def test_improved_policy_by_hand() -> None:
    # N = 3 + 1, q = 0.5, 0.25, own 0.4; the third is unvisited:
    # mixed = (0.4 + 4 (0.5 * 0.5 + 0.25 * 0.25) / 0.75) / 5 = (0.4 + 4 * 0.416667) / 5 = 0.413333
    # weights with (1 + 3) * 1: 0.5 e^2, 0.25 e^1, 0.25 e^1.653333
    children = [VisitStats(3, 1.5), VisitStats(1, 0.25), VisitStats()]
    weights = [0.5 * math.exp(2), 0.25 * math.exp(1), 0.25 * math.exp(4 * 0.41333333333)]
    policy = improved_policy([0.5, 0.25, 0.25], children, own=0.4, c_visit=1.0, c_scale=1.0)
    assert policy == pytest.approx([weight / sum(weights) for weight in weights])
    assert improved_policy([], [], 0.5, 1.0, 1.0) == []
    assert sigma(0.5, 3, 50.0, 0.1) == pytest.approx(2.65)


@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=8),
    st.floats(0, 100),
    st.floats(0, 2),
)
def test_the_improved_policy_has_no_lower_value(
    arms: list[tuple[float, float, int]], c_visit: float, c_scale: float
) -> None:
    total = sum(weight for weight, _, _ in arms)
    priors = [weight / total for weight, _, _ in arms]
    children = [VisitStats(visits, value * visits) for _, value, visits in arms]
    policy = improved_policy(priors, children, 0.5, c_visit, c_scale)
    assert sum(policy) == pytest.approx(1.0)
    before = sum(prior * child.mean for prior, child in zip(priors, children, strict=True))
    after = sum(share * child.mean for share, child in zip(policy, children, strict=True))
    assert after >= before - 1e-9


def expansions(decision: SequentialHalving, values: list[float]) -> Counter[str]:
    """Play a decision through, one expansion at a time, each of which returns the child's true value."""
    had: Counter[str] = Counter()
    while not decision.decided:
        child = next(decision.ranked())
        decision.started(child)
        child.back_up(values[int(child.thought.text)])
        had[child.thought.text] += 1
        decision.advance()
    return had


def test_the_expansions_of_a_decision_follow_the_schedule() -> None:
    values = [0.1, 0.9, 0.2, 0.8]
    decision = SequentialHalving(tree([0.25] * 4, values), 16, seed=0, c_visit=50.0, c_scale=1.0)
    assert expansions(decision, values) == {"0": 2, "1": 6, "2": 2, "3": 6}
    assert decision.winner is not None
    assert decision.winner.thought.text == "1"


def test_a_phase_ends_only_once_everything_has_landed() -> None:
    root = tree([0.5, 0.5], [0.5, 0.5])
    decision = SequentialHalving(root, 2, seed=0, c_visit=50.0, c_scale=1.0)
    for child in root.children:
        decision.started(child)
        child.depart(1)
    assert list(decision.ranked()) == []
    decision.advance()
    assert not decision.decided
    for child in root.children:
        child.arrive(1)
    decision.advance()
    assert decision.decided


def test_expansions_count_for_the_child_that_they_are_below() -> None:
    root = tree([0.5, 0.5], [0.5, 0.5])
    below, _ = root.children[0].add(Thought(5, "x", "x", 2, (1,), (0.0,)))
    decision = SequentialHalving(root, 4, seed=0, c_visit=50.0, c_scale=1.0)
    decision.started(below)
    assert next(decision.ranked()) is root.children[1]
    decision.started(root.children[1])
    decision.started(below)
    assert list(decision.ranked()) == [root.children[1]]


def test_closed_children_are_out_of_the_decision() -> None:
    root = tree([0.4, 0.3, 0.3], [0.9, 0.2, 0.1])
    decision = SequentialHalving(root, 12, seed=0, c_visit=50.0, c_scale=1.0)
    root.children[0].closed = True
    assert {child.thought.text for child in decision.ranked()} == {"1", "2"}
    root.children[1].closed = True
    assert decision.decided
    assert decision.winner is root.children[2]
    root.children[2].closed = True
    assert decision.winner is None


def test_decisions_improve_on_the_policy_even_with_few_expansions() -> None:
    """A bandit whose policy prefers bad arms: the mean value of the choice exceeds that of a draw from the policy."""
    policy, values, m = [0.4, 0.3, 0.2, 0.05, 0.05], [0.2, 0.3, 0.5, 0.9, 0.1], 3
    rng, chosen = Random(0), []
    for seed in range(300):
        left, order = dict(enumerate(policy)), []
        for _ in range(m):
            order.append(rng.choices(list(left), list(left.values()))[0])
            del left[order[-1]]
        root = tree([policy[arm] for arm in order], [values[arm] for arm in order])
        decision = SequentialHalving(root, 4, seed, c_visit=1.0, c_scale=1.0)
        expansions(decision, [values[arm] for arm in order])
        assert decision.winner is not None
        chosen.append(values[order[int(decision.winner.thought.text)]])
    drawn = sum(p * value for p, value in zip(policy, values, strict=True))
    assert sum(chosen) / len(chosen) > drawn + 0.05


def test_without_values_the_choice_is_a_draw_from_the_policy() -> None:
    """All values alike: the noise alone decides, and the first drawn has the highest perturbed log-probability."""
    for seed in range(20):
        decision = SequentialHalving(tree([0.2, 0.5, 0.3], [0.5] * 3), 6, seed, c_visit=50.0, c_scale=1.0)
        expansions(decision, [0.5] * 3)
        assert decision.winner is not None
        assert decision.winner.thought.text == "0"

from __future__ import annotations

import pytest

from dendrite.errors import InvalidArgument
from dendrite.search.budget import Budget
from dendrite.search.rollouts import Evaluation
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode
from tests.dendrite.search.mcts_worlds import check_at_rest, grow
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, uniform


def test_the_rollouts_of_a_leaf_are_one_visit_in_flight() -> None:
    node = SearchNode(Thought())
    evaluation = Evaluation(node, 3)
    counts = []
    for step in "++-+--":
        evaluation.depart() if step == "+" else evaluation.arrive()
        counts.append(node.stats.in_flight)
    assert counts == [1, 1, 1, 1, 1, 0]


def test_the_mean_is_there_once_all_have_returned() -> None:
    evaluation = Evaluation(SearchNode(Thought()), 2)
    evaluation.returns.append(0.2)
    assert evaluation.mean is None
    evaluation.returns.append(0.6)
    assert evaluation.mean == pytest.approx(0.4)


LINE: Table = {"": {"a\n": 1.0}, "a\n": {"b\n": 1.0}, "a\nb\n": {"c\n": 1.0}}


async def test_a_rollout_is_discounted_by_its_thoughts_and_a_backup_by_its_levels() -> None:
    """Two thoughts below "a" lies 0.8: "a" is worth 0.5^2 0.8, and half of that counts at the root."""
    search = await grow(
        Puzzle({"a\nb\nc\n": 0.8}), TreeBackend(LINE), Budget(expansions=3), value="rollout", discount=0.5, in_flight=1
    )
    assert search.root is not None
    assert search.root.stats.mean == pytest.approx(0.1)
    assert search.root.children[0].stats.mean == pytest.approx(0.2)
    assert search.session.visits == [(1, pytest.approx(0.2))]  # type: ignore[attr-defined]


async def test_a_new_leaf_gets_its_rollouts_at_once_and_their_mean_is_one_visit() -> None:
    """Below "a" half the ends earn 0.9: the first expansion, then six rollouts of two thoughts, side by side."""
    table: Table = {"": {"a\n": 1.0}, "a\n": uniform("x\n", "y\n"), "a\nx\n": {"e\n": 1.0}, "a\ny\n": {"e\n": 1.0}}
    rewards = {"a\nx\ne\n": 0.9, "a\ny\ne\n": 0.0}
    backend = TreeBackend(table)
    search = await grow(
        Puzzle(rewards), backend, Budget(expansions=13), value="rollout", mode="leaf", rollouts=6, in_flight=6
    )
    ends = [text for text, _, _ in backend.calls if text in ("a\nx\n", "a\ny\n")]
    assert [text for text, _, _ in backend.calls[:7]] == ["", *["a\n"] * 6]
    assert backend.most_running == 6
    assert len(ends) == 6
    assert set(ends) == {"a\nx\n", "a\ny\n"}, "each draws on its own"
    assert search.root is not None
    child = search.root.children[0]
    assert (child.stats.visits, search.root.stats.visits, search.nodes) == (1, 1, 2)
    assert child.stats.mean == pytest.approx(0.9 * ends.count("a\nx\n") / 6)
    check_at_rest(search, backend)


async def test_by_values_a_rollout_is_one_thought() -> None:
    """Half of the thoughts below "a" are valued 0.8 and half 0.2; the value of "a" itself does not count."""
    table: Table = {"": {"a\n": 1.0}, "a\n": uniform("x\n", "y\n")}
    values = {"a\n": 0.0, "a\nx\n": 0.8, "a\ny\n": 0.2}
    backend = TreeBackend(table, values)
    search = await grow(Puzzle({}), backend, Budget(expansions=9), mode="leaf", rollouts=8, in_flight=8)
    assert [text for text, _, _ in backend.calls] == ["", *["a\n"] * 8]
    assert search.root is not None
    assert search.root.children[0].stats.visits == 1
    assert search.root.children[0].stats.mean in [pytest.approx((0.8 * n + 0.2 * (8 - n)) / 8) for n in range(1, 8)]


async def test_leaf_draws_by_value_need_a_value() -> None:
    with pytest.raises(InvalidArgument, match=r'value=.*"rollout"'):
        await grow(Puzzle({}), TreeBackend(LINE), Budget(expansions=9), mode="leaf")

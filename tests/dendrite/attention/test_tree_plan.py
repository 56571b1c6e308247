from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.attention.tree_cost import CostModel, PlanLimits, PlanShape
from dendrite.attention.tree_pieces import OPEN_END
from dendrite.attention.tree_plan import TreePlan, plan_tree
from dendrite.errors import InvalidArgument
from tests.dendrite.attention.forests import Forest, forests

EAGER = CostModel(item_us=0.01, partial_us=0.001, merge_us=0.0)
"""Shares whatever can be shared."""
NEVER = CostModel(least_gain_us=math.inf)
SHAPE = PlanShape(page_size=16, group=8, kv_heads=4, block_m=128, block_n=64, sm_count=132)


def shape_of(page_size: int, group: int = 4, block_m: int = 64, block_n: int = 32) -> PlanShape:
    return PlanShape(page_size, group, 2, block_m, block_n, sm_count=132)


def check(plan: TreePlan, forest: Forest, shape: PlanShape, limits: PlanLimits, grown: int) -> None:
    """Every token of every row is read by exactly one item, and that item's pages are the row's."""
    size = forest.page_size
    lengths = np.where(forest.lengths > 0, forest.lengths + grown, 0)
    reads = [np.zeros(length, int) for length in lengths]
    found: list[list[int]] = [[] for _ in lengths]
    assert len(plan.items) <= limits.items
    for first, count, start, end, split, is_open, row, table in plan.items.tolist():
        assert 1 <= count <= max(shape.tile_rows, 16 // shape.group)
        assert row == plan.order[first]
        assert table == plan.row_start[row]
        assert start % size == 0
        assert is_open == (end == OPEN_END)
        assert count == 1 or not is_open
        for member in plan.order[first : first + count].tolist():
            stop = min(end, lengths[member]) if count == 1 else end
            reads[member][start:stop] += 1
            found[member].append(split)
            assert stop <= lengths[member]
            pages = slice(start // size, -(-stop // size))
            at = plan.row_start[member]
            assert np.array_equal(forest.tables[row][pages], forest.tables[member][pages])
            assert np.array_equal(plan.pages[at : at + len(forest.tables[member])], forest.tables[member])
    for member, read in enumerate(reads):
        assert (read == 1).all()
        assert sorted(found[member]) == list(range(plan.splits[member]))
        assert (plan.splits[member] > 0) == (lengths[member] > 0)
        assert plan.splits[member] <= limits.splits


@settings(max_examples=60)
@given(
    forests(),
    st.sampled_from([EAGER, CostModel(), NEVER]),
    st.sampled_from([(1, 16), (4, 32), (4, 128), (8, 64), (16, 128)]),
    st.sampled_from([0, 10, 500]),
    st.integers(1, 20),
    st.booleans(),
)
def test_every_token_is_read_once_within_the_limits_until_the_horizon(
    forest: Forest, cost: CostModel, tile: tuple[int, int], spare: int, splits: int, idle: bool
) -> None:
    if idle:
        forest.lengths[::3] = 0
    shape = shape_of(forest.page_size, *tile)
    limits = PlanLimits(items=len(forest.tables) + spare, splits=splits)
    plan = plan_tree(forest.tables, forest.lengths, shape, limits, forest.horizon, cost)
    for grown in {0, 1, forest.horizon}:
        if grown <= forest.horizon:
            check(plan, forest, shape, limits, grown)
    assert plan.flat_tokens == forest.lengths.sum()
    assert plan.kind == ("tree" if (plan.items[:, 1] > 1).any() else "flat")
    if cost is NEVER:
        assert plan.kind == "flat"
        assert plan.tokens == plan.flat_tokens


def fan(rows: int, prefix: int, suffix: int, size: int = 16) -> Forest:
    shared, own = prefix // size, -(-(suffix + 32) // size)
    tables = [np.r_[1 : shared + 1, shared + 1 + row * own : shared + 1 + (row + 1) * own] for row in range(rows)]
    return Forest(size, 32, tables, np.full(rows, prefix + suffix), shared + 1 + rows * own)


def plan_of(forest: Forest, cost: CostModel | None = None) -> TreePlan:
    return plan_tree(forest.tables, forest.lengths, SHAPE, PlanLimits(1000, 32), forest.horizon, cost)


def test_a_long_prefix_of_many_rows_is_read_once_for_each_tile() -> None:
    forest = fan(64, 4096, 50)
    plan = plan_of(forest)
    check(plan, forest, SHAPE, PlanLimits(1000, 32), 0)
    assert plan.kind == "tree"
    assert plan.tokens == 4 * 4096 + 64 * 50
    assert plan.flat_tokens == 64 * (4096 + 50)


def test_a_short_prefix_of_two_rows_is_not_worth_an_item() -> None:
    assert plan_of(fan(2, 16, 50)).kind == "flat"


def test_each_level_of_a_tree_is_shared_by_its_own_rows() -> None:
    # Two branches of 512 tokens behind a trunk of 1024, eight rows each, and rows in no particular order.
    trunk, branches = np.arange(1, 65), [np.arange(65, 97), np.arange(97, 129)]
    tables = [np.concatenate((trunk, branches[row % 2], [129 + 2 * row, 130 + 2 * row])) for row in range(16)]
    forest = Forest(16, 8, tables, np.full(16, 1024 + 512 + 20), 161)
    plan = plan_of(forest, EAGER)
    check(plan, forest, SHAPE, PlanLimits(1000, 32), 8)
    shared = plan.items[plan.items[:, 1] > 1]
    trunk_items, branch_items = shared[shared[:, 2] < 1024], shared[shared[:, 2] >= 1024]
    assert (trunk_items[:, 1] == 16).all()
    assert (branch_items[:, 1] == 8).all()
    assert len({row % 2 for row in plan.order[:8].tolist()}) == 1
    assert plan.tokens == 1024 + 2 * 512 + 16 * 20


def test_limits_that_bind_fold_the_least_useful_segments_first() -> None:
    # A chain of forks: row n shares 64 tokens more with its successors than row n - 1 does.
    spine = np.arange(1, 200)
    tables = [np.concatenate((spine[: 4 * row], 1000 + 10 * row + np.arange(3))) for row in range(1, 33)]
    forest = Forest(16, 0, tables, np.array([64 * row + 40 for row in range(1, 33)]), 2000)
    deep = plan_of(forest, EAGER)
    limits = PlanLimits(1000, 4)
    plan = plan_tree(forest.tables, forest.lengths, SHAPE, limits, 0, EAGER)
    check(plan, forest, SHAPE, limits, 0)
    assert deep.splits.max() > 4
    assert plan.kind == "tree"
    assert deep.tokens < plan.tokens < plan.flat_tokens


def test_a_single_row_is_cut_so_that_several_programs_share_it() -> None:
    forest = fan(1, 0, 640)
    plan = plan_of(forest)
    check(plan, forest, SHAPE, PlanLimits(1000, 32), 32)
    assert len(plan.items) > 2


def test_the_longest_items_come_first() -> None:
    forest = fan(64, 4096, 50)
    sizes = np.minimum(plan_of(forest).items[:, 3], 4146) - plan_of(forest).items[:, 2]
    assert sizes[0] == sizes.max()
    assert (sizes[-64:] <= 64).all()


def test_tables_that_gained_pages_keep_the_plan() -> None:
    forest = fan(8, 256, 20)
    plan = plan_of(forest, EAGER)
    forest.tables = [np.concatenate((table, [900 + row])) for row, table in enumerate(forest.tables)]
    check(plan.with_tables(forest.tables), forest, SHAPE, PlanLimits(1000, 32), 32)


def test_a_table_may_gain_the_pages_of_the_horizon_later() -> None:
    forest = fan(8, 256, 20)
    whole, forest.tables = forest.tables, [table[:18] for table in forest.tables]
    plan = plan_of(forest, EAGER)
    forest.tables = whole
    check(plan.with_tables(whole), forest, SHAPE, PlanLimits(1000, 32), 32)


def test_no_rows_and_idle_rows_make_an_empty_list() -> None:
    assert len(plan_tree([], [], SHAPE, PlanLimits(8, 4)).items) == 0
    plan = plan_tree([np.array([1]), np.array([2])], [0, 0], SHAPE, PlanLimits(8, 4))
    assert len(plan.items) == 0
    assert plan.splits.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tables", "lengths", "field"),
    [
        ([np.array([1])], [17], "tables[0]"),
        ([np.array([1]), np.array([2])], [9, 19], "tables[1]"),
        ([np.array([1])], [4, 5], "lengths"),
        ([np.array([1])] * 9, [1] * 9, "tables"),
    ],
)
def test_what_cannot_be_planned_is_refused(tables: list[np.ndarray], lengths: list[int], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan_tree(tables, lengths, SHAPE, PlanLimits(8, 4))
    assert caught.value.field == field
    assert pickle.loads(pickle.dumps(caught.value)).field == field


@pytest.mark.parametrize(
    ("rows", "longest", "programs"), [(1, 16_000, 2), (64, 4_160, 2), (64, 32_832, 3), (128, 576, 3), (256, 4_160, 3)]
)
def test_little_work_is_divided_among_fewer_programs(rows: int, longest: int, programs: int) -> None:
    assert CostModel.of(64, rows, longest).programs_per_sm == programs

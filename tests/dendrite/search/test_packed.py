from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument, TraceError
from dendrite.search.packed import PackedTrees, pack
from dendrite.search.trace_file import read_trace
from dendrite.search.trace_tree import TraceTree
from tests.dendrite.search.traces import synthesize, write_trace

NAMES = [field.name for field in fields(PackedTrees)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


def made_up(folder: Path, seed: int, steps: int = 40) -> TraceTree:
    return read_trace(write_trace(folder / f"{seed}.jsonl", synthesize(seed, steps)))


def trees(traces: list[TraceTree]) -> list[tuple[TraceTree, int]]:
    return [(trace, root.id) for trace in traces for root in trace.roots]


def preorder(trace: TraceTree, node: int) -> list[int]:
    return [node, *(place for child in trace.nodes[node].children for place in preorder(trace, child))]


seeds = st.lists(st.integers(0, 2**16), max_size=3, unique=True)


@settings(max_examples=30)
@given(seeds)
def test_what_is_saved_is_loaded(folder: Path, seeds: list[int]) -> None:
    traces = [made_up(folder, seed) for seed in seeds]
    packed = pack(traces)
    path = folder / "trees.npz"
    packed.save(path)
    loaded = PackedTrees.load(path)
    assert len(loaded) == len(trees(traces))
    for name in NAMES:
        before, after = getattr(packed, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert not list(folder.glob("*.partial"))


@settings(max_examples=30)
@given(seeds)
def test_nodes_are_those_of_the_traces(folder: Path, seeds: list[int]) -> None:
    traces = [made_up(folder, seed) for seed in seeds]
    packed = pack(traces)
    for tree, (trace, root) in enumerate(trees(traces)):
        first = int(packed.tree_start[tree])
        order = preorder(trace, root)
        assert packed.tree_start[tree + 1] - first == len(order)
        leaves = {first + index for index, place in enumerate(order) if not trace.nodes[place].children}
        end = packed.tree_start[tree + 1]
        assert {int(leaf) for leaf in packed.leaves() if first <= leaf < end} == leaves
        for index, place in enumerate(order, first):
            node, path = trace.nodes[place], trace.path(place)
            assert packed.path(index).tolist() == [token for each in path for token in each.tokens]
            assert packed.visits[index] == node.visits
            for name in ("reward", "value"):
                figure = getattr(node, name)
                np.testing.assert_equal(getattr(packed, name)[index], np.float32(np.nan if figure is None else figure))
            span = slice(packed.node_start[index], packed.node_start[index + 1])
            before = sum(len(each.tokens) for each in path[:-1])
            assert packed.position[span].tolist() == list(range(before, before + len(node.tokens)))
            np.testing.assert_array_equal(
                packed.logprobs[span], np.array(node.logprobs or [np.nan] * len(node.tokens), np.float32)
            )


@settings(max_examples=15)
@given(st.integers(0, 2**16))
def test_the_mask_is_the_one_that_walking_gives(folder: Path, seed: int) -> None:
    traces = [made_up(folder, seed, 12), made_up(folder, seed + 1, 16)]
    packed = pack(traces)
    for tree, (trace, root) in enumerate(trees(traces)):
        slots = [(place, index) for place in preorder(trace, root) for index in range(len(trace.nodes[place].tokens))]
        lines = {place: {each.id for each in trace.path(place)} for place in trace.nodes}
        expected = [
            [place in lines[reader] and (place != reader or index <= at) for place, index in slots]
            for reader, at in slots
        ]
        np.testing.assert_array_equal(packed.mask(tree), np.array(expected, bool).reshape(len(slots), len(slots)))


def test_by_hand(folder: Path) -> None:
    """0 over 1 (two tokens) and 3; 1 over 2."""
    packed = PackedTrees(
        tokens=np.array([1, 2, 3, 4, 5], np.int32),
        logprobs=np.array([np.nan, -1, -1, -1, -1], np.float32),
        position=np.array([0, 1, 2, 3, 1], np.int32),
        node_start=np.array([0, 1, 3, 4, 5], np.int64),
        parent=np.array([-1, 0, 1, 0], np.int32),
        subtree_end=np.array([4, 3, 3, 4], np.int32),
        reward=np.full(4, np.nan, np.float32),
        value=np.full(4, np.nan, np.float32),
        visits=np.zeros(4, np.int32),
        tree_start=np.array([0, 4], np.int64),
    )
    assert packed.leaves().tolist() == [2, 3]
    assert packed.path(2).tolist() == [1, 2, 3, 4]
    assert packed.mask(0).astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    packed.save(folder / "hand.npz")
    PackedTrees.load(folder / "hand.npz")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("tokens", lambda array: array.astype(np.int64), "tokens is int64"),
        ("parent", lambda array: array[None], "parent is int32"),
        ("parent", None, "no array 'parent'"),
        ("visits", lambda array: array[1:], "visits has"),
        ("logprobs", lambda array: array[1:], "logprobs has"),
        ("node_start", lambda array: array[::-1], "node_start does not rise"),
        ("node_start", lambda array: array[:0], "node_start does not rise"),
        ("tree_start", lambda array: array + 1, "tree_start does not rise"),
        ("parent", lambda array: np.where(array == 0, -1, array), "point at the roots"),
        ("parent", lambda array: np.where(array == 0, -2, array), "point at the roots"),
        ("parent", lambda array: np.where(np.arange(len(array)) == 1, 1, array), "come before its child"),
        ("subtree_end", lambda array: array + 1, "not in preorder"),
        ("position", lambda array: array + 1, "position does not count"),
    ],
)
def test_a_damaged_file_is_refused(folder: Path, name: str, change: Any, reason: str) -> None:
    packed = pack([made_up(folder, 5)])
    arrays = {each: getattr(packed, each) for each in NAMES}
    arrays[name] = change(arrays[name]) if change else None
    path = folder / "damaged.npz"
    np.savez(path, **{each: array for each, array in arrays.items() if array is not None})
    with pytest.raises(TraceError, match=reason):
        PackedTrees.load(path)


def test_nodes_out_of_preorder_are_refused(folder: Path) -> None:
    """1 and 2 below 0, then 3 below 1: its subtree would not be an interval."""
    arrays = {name: np.zeros(0, kind) for name, kind in (("tokens", np.int32), ("logprobs", np.float32))}
    arrays |= {"position": np.zeros(0, np.int32), "node_start": np.zeros(5, np.int64)}
    arrays |= {"parent": np.array([-1, 0, 0, 1], np.int32), "subtree_end": np.array([4, 4, 3, 4], np.int32)}
    arrays |= {name: np.zeros(4, np.float32) for name in ("reward", "value")}
    arrays |= {"visits": np.zeros(4, np.int32), "tree_start": np.array([0, 4], np.int64)}
    path = folder / "crossed.npz"
    np.savez(path, **arrays)
    with pytest.raises(TraceError, match="not in preorder"):
        PackedTrees.load(path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04broken"])
def test_what_is_no_archive_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="cannot be read as packed trees"):
        PackedTrees.load(path)


def test_nothing_is_unpickled(folder: Path) -> None:
    path = folder / "pickled.npz"
    np.savez(path, tokens=np.array([{}], dtype=object))
    with pytest.raises(TraceError, match="cannot be read as packed trees"):
        PackedTrees.load(path)


def test_indices_are_checked(folder: Path) -> None:
    packed = pack([made_up(folder, 5)])
    for call in (packed.mask, packed.path):
        for index in (-1, 10_000):
            with pytest.raises(InvalidArgument, match=str(index)):
                call(index)


def test_a_trace_without_a_tree_is_refused(folder: Path) -> None:
    path = write_trace(folder / "bare.jsonl", synthesize(0, 3)[:1])
    with pytest.raises(InvalidArgument, match="has no tree"):
        pack([read_trace(path)])


@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_file_with_a_broken_byte_is_read_as_it_was_or_refused(folder: Path, at: float, flip: int) -> None:
    packed = pack([made_up(folder, 5)])
    path = folder / "flipped.npz"
    packed.save(path)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= flip
    path.write_bytes(content)
    with contextlib.suppress(TraceError):
        read = PackedTrees.load(path)
        assert all(np.array_equal(getattr(read, name), getattr(packed, name), equal_nan=True) for name in NAMES)


def test_a_lone_array_is_refused(folder: Path) -> None:
    np.save(folder / "lone.npy", np.arange(3))
    with pytest.raises(TraceError, match="cannot be read as packed trees"):
        PackedTrees.load(folder / "lone.npy")

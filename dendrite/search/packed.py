"""Packed token trees: traced searches as flat arrays, for training on whole trees.

A token that siblings share is stored once, and attends to its ancestors alone, so that one forward pass over a tree
gives the same log-probabilities as one pass a path.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dendrite.errors import InvalidArgument, TraceError
from dendrite.search.trace_tree import TraceNode, TraceTree

Ints: TypeAlias = NDArray[np.int32]
Offsets: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]

_TYPES: Final = {"Ints": np.int32, "Offsets": np.int64, "Floats": np.float32}
_UNREADABLE: Final = (OSError, ValueError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error)
"""What NumPy, `zipfile` and `zlib` raise for a file that is no archive of arrays, or a damaged one."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedTrees:
    """Trees of N nodes and T tokens in all, each in preorder, one tree after the other.

    Node `i` has the tokens `node_start[i]:node_start[i + 1]`, and tree `k` the nodes `tree_start[k]:tree_start[k + 1]`.
    `j` is in the subtree of `i`, itself included, if and only if `i <= j < subtree_end[i]`. The first node of a tree is
    its prompt.

    Attributes:
        tokens: [T] token ids.
        logprobs: [T] natural logs of the model's probabilities at temperature 1; NaN for prompts and where not known.
        position: [T] index of the token on the path from its root, as rotary embeddings take it.
        node_start: [N + 1] first token of each node.
        parent: [N] parent node, -1 for roots.
        subtree_end: [N] end of each node's subtree.
        reward: [N] NaN where the node has none.
        value: [N] NaN where the node has none.
        visits: [N] completed visits.
        tree_start: [trees + 1] first node of each tree.
    """

    tokens: Ints
    logprobs: Floats
    position: Ints
    node_start: Offsets
    parent: Ints
    subtree_end: Ints
    reward: Floats
    value: Floats
    visits: Ints
    tree_start: Offsets

    def __len__(self) -> int:
        """The number of trees."""
        return len(self.tree_start) - 1

    def path(self, node: int) -> Ints:
        """Token ids from the root of the tree to the end of `node`.

        Raises:
            InvalidArgument: There is no such node.
        """
        self._check("node", node, len(self.parent))
        spans = []
        while node >= 0:
            spans.append(self.tokens[self.node_start[node] : self.node_start[node + 1]])
            node = int(self.parent[node])
        return np.concatenate(spans[::-1])

    def mask(self, tree: int) -> NDArray[np.bool_]:
        """Attention mask [t, t] of one tree's t tokens: whether the token of the row sees that of the column.

        A token sees itself, those before it in its node, and all of its node's ancestors.

        Raises:
            InvalidArgument: There is no such tree.
        """
        self._check("tree", tree, len(self))
        first, end = self.tree_start[tree], self.tree_start[tree + 1]
        node = np.repeat(np.arange(first, end), np.diff(self.node_start[first : end + 1]))
        after = self.subtree_end[node]
        below = (node[None, :] <= node[:, None]) & (node[:, None] < after[None, :])
        order = np.arange(len(node))
        seen: NDArray[np.bool_] = below & (order[None, :] <= order[:, None])
        return seen

    def leaves(self) -> Offsets:
        """The nodes without children, in order."""
        return np.flatnonzero(self.subtree_end == np.arange(len(self.parent)) + 1).astype(np.int64)

    def save(self, path: Path | str) -> None:
        """Write one `.npz` of the arrays by their names, in the place of what is at `path`, or not at all."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path | str) -> PackedTrees:
        """Read what `save` has written.

        Raises:
            TraceError: The file cannot be read, or its arrays are not those of packed trees.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except _UNREADABLE as error:
            raise TraceError(str(path), None, f"cannot be read as packed trees: {error}") from error
        fault = _fault(arrays)
        if fault:
            raise TraceError(str(path), None, fault)
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def _check(self, name: str, index: int, count: int) -> None:
        if not 0 <= index < count:
            raise InvalidArgument(name, index, f"must be at least 0 and below {count}")


def pack(traces: Iterable[TraceTree]) -> PackedTrees:
    """Pack traced trees, in the order given; siblings in the order in which they came.

    A search of several prompts gives a tree for each.

    Raises:
        InvalidArgument: A trace ends before its prompt was computed, so that it has no tree.
    """
    nodes: list[TraceNode] = []
    parent: list[int] = []
    tree_start = [0]
    for trace in traces:
        if not trace.nodes:
            raise InvalidArgument("traces", trace.file, "has no tree: the search ended before its prompt was computed")
        place: dict[int | None, int] = {None: -1}
        for root in trace.roots:
            for node in _preorder(trace, root):
                place[node.id] = len(nodes)
                parent.append(place[node.parent])
                nodes.append(node)
            tree_start.append(len(nodes))
    sizes = [len(node.tokens) for node in nodes]
    parents, starts = np.array(parent, np.int32), np.cumsum([0, *sizes], dtype=np.int64)
    logprobs = [logprob for node in nodes for logprob in (node.logprobs or [np.nan] * len(node.tokens))]
    return PackedTrees(
        tokens=np.array([token for node in nodes for token in node.tokens], np.int32),
        logprobs=np.array(logprobs, np.float32),
        position=_positions(parents, starts),
        node_start=starts,
        parent=parents,
        subtree_end=_subtree_ends(parents),
        reward=np.array([node.reward for node in nodes], np.float32),
        value=np.array([node.value for node in nodes], np.float32),
        visits=np.array([node.visits for node in nodes], np.int32),
        tree_start=np.array(tree_start, np.int64),
    )


def _preorder(trace: TraceTree, root: TraceNode) -> Iterator[TraceNode]:
    rest = [root.id]
    while rest:
        node = trace.nodes[rest.pop()]
        rest.extend(reversed(node.children))
        yield node


def _subtree_ends(parent: Ints) -> Ints:
    """End of each subtree, of nodes in preorder."""
    ends = np.arange(1, len(parent) + 1, dtype=np.int32)
    for node in range(len(parent) - 1, -1, -1):
        above = parent[node]
        if above >= 0:
            ends[above] = max(ends[above], ends[node])
    return ends


def _positions(parent: Ints, starts: Offsets) -> Ints:
    """Index of each token on its path."""
    sizes = np.diff(starts)
    before = np.zeros(len(parent), np.int64)
    for node, above in enumerate(parent):
        if above >= 0:
            before[node] = before[above] + sizes[above]
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
    positions: Ints = (np.repeat(before, sizes) + within).astype(np.int32)
    return positions


def _fault(arrays: dict[str, Any]) -> str | None:
    """What keeps these arrays from being packed trees."""
    for field in fields(PackedTrees):
        array = arrays.get(field.name)
        if array is None:
            return f"has no array {field.name!r}"
        if array.dtype != _TYPES[str(field.type)] or array.ndim != 1:
            return f"{field.name} is {array.dtype}{list(array.shape)}, not a list of {_TYPES[str(field.type)].__name__}"
    parent, count = arrays["parent"], len(arrays["parent"])
    for name, total in (("node_start", len(arrays["tokens"])), ("tree_start", count)):
        offsets = arrays[name]
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
            return f"{name} does not rise from 0 to {total}"
    lengths = {"node_start": count + 1, "logprobs": len(arrays["tokens"]), "position": len(arrays["tokens"])}
    lengths |= dict.fromkeys(("subtree_end", "reward", "value", "visits"), count)
    for name, length in lengths.items():
        if len(arrays[name]) != length:
            return f"{name} has {len(arrays[name])} entries, not {length}"
    if not np.array_equal(np.flatnonzero(parent < 0), arrays["tree_start"][:-1]) or (parent < -1).any():
        return "tree_start does not point at the roots"
    if (parent >= np.arange(count)).any():
        return "a parent does not come before its child"
    ends = _subtree_ends(parent)
    # In preorder a node starts within its parent's subtree: it follows its parent or the subtree of a sibling.
    if not np.array_equal(ends, arrays["subtree_end"]) or not _is_preorder(parent, ends):
        return "the nodes are not in preorder"
    if not np.array_equal(_positions(parent, arrays["node_start"]), arrays["position"]):
        return "position does not count from the roots"
    return None


def _is_preorder(parent: Ints, ends: Ints) -> bool:
    """Whether each child begins where its parent, or the subtree of the sibling before it, ends."""
    free = np.arange(1, len(parent) + 1)
    for node, above in enumerate(parent):
        if above >= 0:
            if node != free[above]:
                return False
            free[above] = ends[node]
    return True

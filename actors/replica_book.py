"""Which nodes of the record are copies of others: the same tokens, under another name on another worker."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from actors.deltas import Status


class Name(NamedTuple):
    """A node of a tree, on whichever worker."""

    tree: int
    node: int


class ReplicaBook:
    """The copies of each node, as the workers tell of them. A tree of copies lies on one worker only."""

    def __init__(self) -> None:
        self._copies: defaultdict[Name, set[Name]] = defaultdict(set)
        self._originals: dict[int, dict[Name, Name]] = {}  # of a tree's nodes that are copies
        self._trees: defaultdict[int, set[int]] = defaultdict(set)  # of each worker

    def __len__(self) -> int:
        """Copies on record."""
        return sum(len(copies) for copies in self._copies.values())

    def copies(self, tree: int, node: int) -> list[Name]:
        """The copies of a node, in trees that are not ended. One may be released itself."""
        return sorted(self._copies.get(Name(tree, node), ()))

    def hear(self, worker: int, status: Status) -> None:
        """Note what a worker says of itself."""
        for tree, node, original_tree, original in status.replicas:
            copy, of = Name(tree, node), Name(original_tree, original)
            self._copies[of].add(copy)
            self._originals.setdefault(tree, {})[copy] = of
            self._trees[worker].add(tree)
        for tree in status.ended.tolist():
            self._trees[worker].discard(tree)
            self._end(tree)

    def forget(self, worker: int) -> None:
        """A worker has lost what it held, or is about to tell of everything."""
        for tree in self._trees.pop(worker, ()):
            self._end(tree)

    def _end(self, tree: int) -> None:
        for copy, of in self._originals.pop(tree, {}).items():
            self._copies[of].discard(copy)
            if not self._copies[of]:
                del self._copies[of]

"""One worker's copy of one tree: which nodes it holds, and the tokens that would rebuild each of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.deltas import ADDED, NO_PARENT, Pack
from dendrite.errors import InvariantViolation

_INT32 = "i"  # `array`'s code; its items are read one by one several times faster than numpy's
_MIN_GARBAGE = 64  # rows; below that, compaction costs more than it saves


class Share(NamedTuple):
    """A tree's part of a pack: where its rows, releases and tokens lie."""

    pack: Pack
    added: slice
    released: slice
    tokens: slice


class TreeCopy:
    """Nodes that one worker holds of a tree, and the released ones that they descend from.

    `held` is right at once. The rest is done when somebody asks (`settle`), for all shares since at one go: most trees
    end before anybody does.
    """

    __slots__ = ("_base", "_children", "_index", "_length", "_node", "_parent", "_shares", "_start", "_tokens", "held")

    def __init__(self) -> None:
        self.held: set[int] = set()
        """Ids of the nodes that are not released."""
        self._shares: list[Share] = []
        self._index = {NO_PARENT: -1}  # node id to row
        # A column each of the rows, in which parents come before their children. `_parent` is a row, -1 for none.
        self._node, self._parent, self._base = array(_INT32), array(_INT32), array(_INT32)
        self._length, self._children = array(_INT32), array(_INT32)
        self._start = array("q")  # of the row's tokens in `_tokens`
        self._tokens = array(_INT32)

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be worked in."""
        return not self._shares

    @property
    def records(self) -> int:
        """Nodes that are held, and released ones that a held one descends from."""
        self.settle()
        return len(self._index) - 1

    def __contains__(self, node: int) -> bool:
        self.settle()
        return node != NO_PARENT and node in self._index

    def apply(self, share: Share, added: Sequence[int], released: Sequence[int]) -> None:
        """Take in a share, whose node ids are given once more as numbers.

        A node is added once only; what is released already is released again without effect.
        """
        self.held.update(added)
        self.held.difference_update(released)
        self._shares.append(share)

    def settle(self) -> None:
        """Work in what has been applied."""
        if not self._shares:
            return
        shares, self._shares = self._shares, []
        self._append(
            # As numbers: numpy compares the fields of records one by one, for each array.
            np.concatenate([share.pack.added[share.added].view(np.int32) for share in shares]).view(ADDED),
            np.concatenate([share.pack.tokens[share.tokens] for share in shares]),
        )
        for share in shares:
            for node in share.pack.released[share.released].tolist():
                self._prune(node)
        if len(self._node) > 2 * len(self._index) + _MIN_GARBAGE:
            self._keep(self._rows())

    def path_tokens(self, node: int) -> tuple[int, ...] | None:
        """The tokens from the root to the end of a node; None if it is neither held nor above a held one."""
        self.settle()
        row = self._index.get(node, -1)
        if row < 0:
            return None
        spans: list[array[int]] = []
        end = self._base[row] + self._length[row]
        while row >= 0:
            start = self._start[row]
            spans.append(self._tokens[start : start + end - self._base[row]])
            end, row = self._base[row], self._parent[row]
        tokens = array(_INT32)
        for span in reversed(spans):
            tokens.extend(span)
        return tuple(tokens)

    def export(self) -> tuple[NDArray[np.void], NDArray[np.int32], NDArray[np.int32]]:
        """Nodes (`ADDED`, parents first), those of them that are released, and the nodes' tokens."""
        self.settle()
        self._keep(self._rows())
        added = np.empty(len(self._node), ADDED)
        for field, column in (("node", self._node), ("base", self._base), ("length", self._length)):
            added[field] = column
        nodes = added["node"]
        parents = np.array(self._parent, np.int32)
        added["parent"] = np.where(parents < 0, NO_PARENT, nodes[parents]) if len(nodes) else 0
        released = [node for node in self._node if node not in self.held]
        return added, np.array(released, np.int32), np.array(self._tokens, np.int32)

    def _append(self, added: NDArray[np.void], tokens: NDArray[np.int32]) -> None:
        nodes, first = added["node"].tolist(), len(self._node)
        self._index.update(zip(nodes, range(first, first + len(nodes)), strict=True))
        try:
            parents = [self._index[parent] for parent in added["parent"].tolist()]
        except KeyError as error:
            raise InvariantViolation(f"a node was added below node {error}, of which nothing is known") from None
        self._children.frombytes(bytes(4 * len(nodes)))
        for parent in parents:
            if parent >= 0:
                self._children[parent] += 1
        self._node.extend(nodes)
        self._parent.extend(parents)
        self._base.frombytes(added["base"].tobytes())
        self._length.frombytes(added["length"].tobytes())
        lengths = added["length"].astype(np.int64)
        self._start.frombytes((len(self._tokens) + np.cumsum(lengths) - lengths).tobytes())
        self._tokens.frombytes(tokens.tobytes())

    def _prune(self, node: int) -> None:
        """Drop a released node without children, then its ancestors that this leaves in the same state."""
        index, held, children = self._index, self.held, self._children
        row = index.get(node, -1)
        while row >= 0 and not children[row] and (node := self._node[row]) not in held:
            del index[node]
            row = self._parent[row]
            if row >= 0:
                children[row] -= 1

    def _rows(self) -> NDArray[np.intp]:
        rows = np.fromiter(self._index.values(), np.intp, len(self._index))
        return np.sort(rows[rows >= 0])

    def _keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all other rows and their tokens. With a row its parent's is kept."""
        if len(rows) == len(self._node):
            return
        renumbered = np.full(len(self._node) + 1, -1, np.int32)  # the last entry is that of row -1
        renumbered[rows] = np.arange(len(rows), dtype=np.int32)
        starts, lengths = np.array(self._start)[rows], np.array(self._length)[rows]
        ends = np.cumsum(lengths, dtype=np.int64)
        shift = np.repeat(starts - (ends - lengths), lengths)
        tokens = np.array(self._tokens)[shift + np.arange(len(shift))]
        self._parent = _column(renumbered[np.array(self._parent)[rows]])
        self._node, self._base = _column(np.array(self._node)[rows]), _column(np.array(self._base)[rows])
        self._children, self._length = _column(np.array(self._children)[rows]), _column(lengths)
        self._start = array("q", (ends - lengths).tobytes())
        self._tokens = _column(tokens)
        self._index = {NO_PARENT: -1, **dict(zip(self._node, range(len(rows)), strict=True))}


def _column(values: NDArray[np.int32]) -> array[int]:
    return array(_INT32, values.astype(np.int32).tobytes())

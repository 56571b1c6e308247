"""A radix tree over the token paths whose KV is held, to find the longest one a new prompt starts with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dendrite.kv.node import Node


class Match(NamedTuple):
    """The KV of a prompt's first `node.base + offset` tokens lies on the path that ends `offset` tokens into `node`."""

    node: Node
    offset: int


class _Edge:
    """The tokens between two branching points. The KV of the path down to its end lies on `owner`'s path."""

    __slots__ = ("edges", "label", "owner", "parent")

    def __init__(self, parent: _Edge | None, label: list[int], owner: Node | None) -> None:
        self.parent = parent
        self.label = label
        self.owner = owner
        self.edges: dict[int, _Edge] = {}  # by the first token of their label


class RadixIndex:
    """Token-level index: a match may end at any token, not only at a page or segment boundary."""

    def __init__(self) -> None:
        self._top = _Edge(None, [], None)
        self._owned: dict[Node, set[_Edge]] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def __contains__(self, node: Node) -> bool:
        return node in self._owned

    def insert(self, path: Sequence[int], node: Node) -> bool:
        """Index the token path `path`, whose KV lies on `node`'s path.

        Returns:
            Whether `node` is in the index now. It is not where an equal or longer path was there before: a second
            copy is of no use to anyone.
        """
        tokens = list(path)
        edge, done, within = self._descend(tokens)
        if done == len(tokens):
            return node in self._owned
        if within < len(edge.label):
            edge = self._split(edge, within)
        elif edge.owner is node and not edge.edges:  # the same prompt, further computed
            edge.label += tokens[done:]
            return True
        leaf = _Edge(edge, tokens[done:], node)
        edge.edges[tokens[done]] = leaf
        self._owned.setdefault(node, set()).add(leaf)
        return True

    def match(self, tokens: Sequence[int]) -> Match | None:
        """Find the longest indexed prefix of `tokens`; None where not even the first token is indexed."""
        edge, done, _ = self._descend(list(tokens))
        if done == 0 or edge.owner is None:
            return None
        node = edge.owner
        while node.base >= done:  # the match ends in an ancestor's segment
            assert node.parent is not None  # only the first node of a path has base 0
            node = node.parent
        return Match(node, done - node.base)

    def remove(self, node: Node) -> None:
        """Forget `node`; does nothing where it is not indexed."""
        orphans = self._owned.pop(node, set())
        for edge in orphans:
            edge.owner = None
        for edge in orphans:
            self._prune(edge)
        for edge in orphans:
            if edge.edges:  # longer paths go on from here, so their KV covers this edge as well
                self._own(edge, _first_owner(edge))

    def _descend(self, tokens: list[int]) -> tuple[_Edge, int, int]:
        """Follow `tokens` down: the last edge touched, tokens matched in all, tokens matched on that edge."""
        edge, done, within = self._top, 0, 0
        while within == len(edge.label) and done < len(tokens):
            following = edge.edges.get(tokens[done])
            if following is None:
                break
            edge = following
            within = _common(edge.label, tokens, done)
            done += within
        return edge, done, within

    def _split(self, edge: _Edge, at: int) -> _Edge:
        """Cut `edge` in two after `at` tokens and return the upper part."""
        assert edge.parent is not None
        assert edge.owner is not None
        upper = _Edge(edge.parent, edge.label[:at], edge.owner)
        edge.parent.edges[upper.label[0]] = upper
        edge.parent, edge.label = upper, edge.label[at:]
        upper.edges[edge.label[0]] = edge
        self._owned[edge.owner].add(upper)
        return upper

    def _prune(self, edge: _Edge) -> None:
        """Cut off `edge` if it has neither owner nor continuation, then what that leaves bare above it."""
        while edge.owner is None and not edge.edges and edge.parent is not None:
            above = edge.parent
            if above.edges.get(edge.label[0]) is not edge:
                return  # cut before, from below
            del above.edges[edge.label[0]]
            edge = above
        if len(edge.edges) == 1 and edge.owner is not None:
            (only,) = edge.edges.values()
            if only.owner is edge.owner:
                self._join(edge, only)

    def _join(self, upper: _Edge, lower: _Edge) -> None:
        """Undo a split whose reason is gone."""
        assert upper.owner is not None
        self._owned[upper.owner].discard(lower)
        upper.label = upper.label + lower.label
        upper.edges = lower.edges
        for edge in upper.edges.values():
            edge.parent = upper

    def _own(self, edge: _Edge, node: Node) -> None:
        edge.owner = node
        self._owned[node].add(edge)


def _first_owner(edge: _Edge) -> Node:
    while edge.owner is None:
        edge = next(iter(edge.edges.values()))  # an edge without owner has a continuation
    return edge.owner


def _common(label: list[int], tokens: list[int], start: int) -> int:
    """Number of leading tokens that `label` and `tokens[start:]` share; compares slices, so at C speed."""
    low, high = 0, min(len(label), len(tokens) - start)
    if label[:high] == tokens[start : start + high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        if label[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low

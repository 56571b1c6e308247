"""The nodes that a worker holds on behalf of others, by the names that others know them by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from actors.deltas import Added
from actors.refs import lease_of
from dendrite.errors import NodeReleased, UnknownNode
from dendrite.kv.node import Node

MOST_ENDED = 4_096
"""Trees that are remembered when nothing of them is held any more. A lease may last, and see any number of them."""


@dataclass(slots=True)
class _Tree:
    """Held nodes by id, and how many ids there have been."""

    nodes: dict[int, Node] = field(default_factory=dict)
    seen: int = 0


class NodeTable:
    """(tree, node id) → `Node`. A node is here from the time its holder learns its name until it is released."""

    def __init__(self) -> None:
        self._trees: dict[int, _Tree] = {}
        self._ended: dict[int, int] = {}  # ids there have been, to tell callers why; the last to end is at the end
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def add(self, tree: int, node: Node) -> None:
        """Hold a node under its own id."""
        found = self._trees.get(tree)
        if found is None:
            found = self._trees[tree] = _Tree(seen=self._ended.pop(tree, 0))
        found.nodes[node.id] = node
        found.seen = max(found.seen, node.id + 1)
        self._live += 1

    def __contains__(self, name: tuple[int, int]) -> bool:
        tree, node = name
        return tree in self._trees and node in self._trees[tree].nodes

    def get(self, tree: int, node: int) -> Node:
        """Return a held node.

        Raises:
            NodeReleased: it was held, and has been released.
            UnknownNode: it was never held, or its lease has been closed since, or its tree ended long ago.
        """
        found = self._trees.get(tree)
        if found is not None and node in found.nodes:
            return found.nodes[node]
        seen = found.seen if found is not None else self._ended.get(tree, 0)
        raise NodeReleased(tree, node) if 0 <= node < seen else UnknownNode(tree, node)

    def pop(self, tree: int, node: int, *, subtree: bool = False) -> list[Node]:
        """Take out a node, with `subtree` all held ones below it too. Empty if there is nothing of it left."""
        found = self._trees.get(tree)
        if found is None:
            return []
        names = [node] if node in found.nodes else []
        if subtree:
            names += [name for name, held in found.nodes.items() if name != node and _descends(held, node)]
        self._live -= len(names)
        taken = [found.nodes.pop(name) for name in names]
        if not found.nodes:
            self._end(tree)
        return taken

    def describe(self, tree: int, parent: Node, child: Node) -> Added:
        """The record of a new child: by its whole path where its parent is not held any more."""
        if (tree, parent.id) in self:
            return Added(tree, child.id, parent.id, child.base, tuple(child.tokens))
        return Added(tree, child.id, None, 0, tuple(child.path_tokens))

    @property
    def leases(self) -> set[int]:
        """Leases under which something is held."""
        return {lease_of(tree) for tree in self._trees}

    def close(self, lease: int) -> Iterator[tuple[int, Node]]:
        """Forget all trees of a lease, and yield the nodes that were still held, with their trees."""
        for tree in [tree for tree in self._trees if lease_of(tree) == lease]:
            nodes = self._trees.pop(tree).nodes.values()
            self._live -= len(nodes)
            for node in nodes:
                yield tree, node
        for tree in [tree for tree in self._ended if lease_of(tree) == lease]:
            del self._ended[tree]

    def _end(self, tree: int) -> None:
        self._ended[tree] = self._trees.pop(tree).seen
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]


def _descends(node: Node, ancestor: int) -> bool:
    """Whether the node `ancestor` of the same tree is above `node`. A parent's id is smaller than its child's."""
    above = node.parent
    while above is not None and above.tree is node.tree and above.id > ancestor:
        above = above.parent
    return above is not None and above.tree is node.tree and above.id == ancestor


def release_all(nodes: Sequence[Node], subtree: bool = False) -> None:
    """Release nodes, with `subtree` all below them too. For the engine's thread."""
    for node in nodes:
        node.release(subtree=subtree)

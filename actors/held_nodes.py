"""What a worker holds for others: nodes are made in the engine and put on record here, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from actors.deltas import Added, Released, Replica
from actors.exchange import Piece
from actors.node_table import NodeTable, release_all
from actors.outbox import Outbox
from actors.refs import ClusterNode, Given, lease_of
from dendrite.config import SamplingParams
from dendrite.errors import Cancelled, LeaseExpired, NodeReleased
from dendrite.kv.node import Node
from dendrite.search.backend import Branch

if TYPE_CHECKING:
    from dendrite.engine.async_engine import AsyncEngine  # which loads torch: see `ModelWorker`
    from dendrite.kv.path_kv import PathKv


MOST_EXPIRED = 1_024
"""Leases of which it is remembered that they have run out. Under one before those, a node is unknown."""


class HeldNodes:
    """The nodes of one engine by the names that others know them by; the outbox hears of each and of its end."""

    def __init__(self, worker: int, engine: AsyncEngine, outbox: Outbox) -> None:
        self._worker, self._engine, self._outbox = worker, engine, outbox
        self._table = NodeTable()
        self._expired: dict[int, None] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._table)

    @property
    def leases(self) -> set[int]:
        """Leases under which something is held."""
        return self._table.leases

    @property
    def expired(self) -> list[int]:
        """Leases of which the holder may not know yet that they are over."""
        return list(self._expired)

    def expire(self, lease: int) -> None:
        """Refuse calls under a lease from now on."""
        self._expired[lease] = None
        if len(self._expired) > MOST_EXPIRED:
            del self._expired[next(iter(self._expired))]

    def check_lease(self, tree: int) -> None:
        """Raise `LeaseExpired` if the lease of a tree has run out."""
        if lease_of(tree) in self._expired:
            raise LeaseExpired(tree)

    def get(self, tree: int, node: int) -> Node:
        """A held node.

        Raises:
            LeaseExpired, NodeReleased, UnknownNode: it is not held.
        """
        self.check_lease(tree)
        return self._table.get(tree, node)

    async def prefill(self, tree: int, prompt: str | Sequence[int], seed: int | None) -> ClusterNode:
        """Compute a prompt as the root of a tree."""
        root = await self._engine.prefill(prompt, seed=seed)
        self._table.add(tree, root)
        self._outbox.add(Added(tree, root.id, None, 0, tuple(root.path_tokens)))
        return self._name(tree, root)

    async def adopt(self, tree: int, parent: int | None, part: PathKv, seed: int | None) -> ClusterNode:
        """Make a node of KV from another worker: below a node, or (None) as the root of a tree.

        Raises:
            OutOfPages, KvNotComputed, KvFormatMismatch, NodeReleased: nothing was made.
            Cancelled: it was released while it was made.
        """
        below = self.get(tree, parent) if parent is not None else None

        def make() -> Node:
            return self._engine.engine.import_path(part, below=below, seed=seed)

        try:
            node = await self._engine.run(make, undo=lambda made: made.release())
        except NodeReleased:
            raise NodeReleased(tree, parent or 0) from None
        if node.released:
            raise Cancelled(f"the copy below node {parent} of tree {tree} was released while it was made")
        self._table.add(tree, node)
        if below is None:
            self._outbox.add(Added(tree, node.id, None, 0, tuple(node.path_tokens)))
        else:
            self._outbox.add(self._table.describe(tree, below, node))
        return self._name(tree, node)

    async def export(self, tree: int, node: int, start: int, end: int) -> PathKv:
        """The KV of tokens `start` .. `end` - 1 of a node's path.

        Raises:
            KvNotComputed, InvalidArgument: it is not there.
        """
        held = self.get(tree, node)
        return await self._engine.run(lambda: self._engine.engine.export_path(held, start, end))

    async def grow(self, tree: int, node: int, make: Callable[[Node], Awaitable[list[Branch]]]) -> list[Branch]:
        """Make children of a node.

        Raises:
            Cancelled: they were released while they were made.
        """
        parent = self.get(tree, node)
        try:
            branches = await make(parent)
        except NodeReleased:
            raise NodeReleased(tree, node) from None  # the engine has numbers of its own for trees
        children = [_node(branch) for branch in branches]
        if any(child.released for child in children):  # with the subtree of an ancestor, in the last step
            await self._engine.run(lambda: release_all(children))
            raise Cancelled(f"the children of node {node} of tree {tree} were released while they were decoded")
        for child in children:
            self._table.add(tree, child)
            self._outbox.add(self._table.describe(tree, parent, child))
        return [
            dataclasses.replace(branch, node=self._name(tree, child), worker=self._worker)
            for branch, child in zip(branches, children, strict=True)
        ]

    async def stream(
        self, call_id: int, tree: int, node: int, params: SamplingParams, every_s: float, put: Callable[[Piece], None]
    ) -> Branch:
        """Make a child of a node as `grow` does, and tell of its tokens as they come, but of the last ones.

        Returns all tokens. What was told of is part of a generation that goes on, so that whoever has to continue it
        elsewhere need not ask whether it had ended.
        """

        async def generate(parent: Node) -> list[Branch]:
            parts: list[Branch] = []
            told = 0
            try:
                async with aclosing(self._engine.stream(parent, params, every_s)) as branches:
                    async for branch in branches:
                        child = _node(branch)
                        if child.finish_reason is None:
                            name = self._name(tree, child)
                            put(Piece(call_id, name, told, branch.tokens, branch.logprobs, branch.top_logprobs))
                        parts.append(branch)
                        told += len(branch.tokens)
            except BaseException:
                if parts:
                    await self._engine.run(_node(parts[0]).release)
                raise
            return [_joined(parts)]

        [branch] = await self.grow(tree, node, generate)
        return branch

    def add_replica(self, tree: int, node: int, original: ClusterNode) -> None:
        """Put on record that a held node is a copy of another worker's; nothing to do if it is not held any more."""
        if (tree, node) in self._table:
            self._outbox.add_replica(Replica(tree, node, original.tree, original.node))

    async def release(self, nodes: Sequence[Given]) -> None:
        """Give nodes up; what is not held is nothing to do."""
        found = [(given, self._table.pop(given.tree, given.node, subtree=given.subtree)) for given in nodes]
        for subtree in (False, True):
            held = [(given.tree, node) for given, popped in found if given.subtree is subtree for node in popped]
            if held:
                await self._release(held, subtree)

    async def close(self, lease: int) -> None:
        """Give up all that is held under a lease, and forget the lease."""
        await self._release(list(self._table.close(lease)), subtree=False)

    def _name(self, tree: int, node: Node) -> ClusterNode:
        return ClusterNode(self._worker, tree, node.id)

    async def _release(self, held: list[tuple[int, Node]], subtree: bool) -> None:
        for tree, node in held:
            self._outbox.add(Released(tree, node.id))
        await self._engine.run(lambda: release_all([node for _, node in held], subtree))


def _joined(parts: Sequence[Branch]) -> Branch:
    """What a stream has yielded, as one branch."""
    return dataclasses.replace(
        parts[-1],
        tokens=tuple(token for part in parts for token in part.tokens),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
        top_logprobs=tuple(top for part in parts for top in part.top_logprobs),
    )


def _node(branch: Branch) -> Node:
    assert isinstance(branch.node, Node)
    return branch.node

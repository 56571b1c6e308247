"""A client's nodes: what they are made of, where their KV lies, and calls at them that outlive a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from actors.background import Background
from actors.documents import extended, placed
from actors.exchange import Piece
from actors.growth import Growth
from actors.kv_transfer import TransferFailed
from actors.lineage import Copy, Lineage, Release, Segment
from actors.node_maker import NodeMaker
from actors.recovery import LOST, Rebuilder, RecoveryStats, Tries
from actors.refs import ClusterNode
from actors.replication import missing_tokens
from actors.routing import Route, Router
from actors.worker_calls import WorkerCalls
from dendrite.config import SamplingParams
from dendrite.errors import (
    Cancelled,
    InvalidArgument,
    KvFormatMismatch,
    KvNotComputed,
    LeaseExpired,
    NodeReleased,
    OutOfPages,
    UnknownNode,
)
from dendrite.search.backend import Branch

T = TypeVar("T")

Generate: TypeAlias = Callable[[ClusterNode, SamplingParams, Callable[[Piece], None]], Awaitable[Branch]]
"""Generates a child of a node by some settings, telling of what has come."""
NOT_COPIED = (TransferFailed, KvNotComputed, KvFormatMismatch, NodeReleased, OutOfPages)
"""Why a node could not be copied to a worker that is alive, apart from what is wrong with the node itself."""


class NodeCopies:
    """Keeps the lineage of nodes, and makes a call at one where a copy of it lies or is made to lie."""

    def __init__(self, calls: WorkerCalls, maker: NodeMaker, router: Router, recovery: RecoveryStats) -> None:
        self._calls, self._fleet, self._router, self._recovery = calls, calls.fleet, router, recovery
        self._lineage = Lineage()
        self._background = Background()
        self._rebuilder = Rebuilder(self._fleet, maker, recovery, self._discard)

    def add_root(self, root: ClusterNode, epoch: int, tokens: tuple[int, ...], seed: int | None) -> None:
        """Put a new tree on record."""
        self._lineage.add(Copy(root, epoch), tokens, seed=seed)

    def placed(self, node: ClusterNode, params: SamplingParams) -> SamplingParams:
        """Settings for what comes after a node, good on any worker: see `actors.documents`."""
        segment = self._lineage.find(node)
        return placed(params, None if segment is None else segment.document)

    async def grow(
        self,
        node: ClusterNode,
        what: str,
        make: Callable[[ClusterNode], Awaitable[list[Branch]]],
        params: SamplingParams | None = None,
    ) -> list[Branch]:
        """Make children of a node, and put them on record. Raises what `at` raises.

        `params`, if `make` generates their tokens, are those that `placed` has returned.
        """

        async def make_at(copy: ClusterNode) -> list[Branch]:
            segment, epoch = self._lineage.find(node), self._fleet.epoch(copy.worker)
            branches = await make(copy)
            assert segment is not None, "a segment stays while a call uses it"
            if segment.cut:
                self._background.start(self._calls.take_back(branches))
                raise _released_meanwhile(node)
            for branch in branches:
                assert isinstance(branch.node, ClusterNode)
                document = extended(params, len(branch.tokens))
                self._lineage.add(Copy(branch.node, epoch), branch.tokens, segment, document=document)
            return branches

        return await self.at(node, what, make_at)

    async def stream(
        self,
        node: ClusterNode,
        params: SamplingParams,
        make: Generate,
        tell: Callable[[Branch], None],
    ) -> Branch:
        """Have a child of a node generated, telling of its tokens as they come, and return the last of them.

        Where its worker is lost in the middle, what has come is a node, and a child of that one goes on. Raises what
        `at` raises.
        """
        while True:
            growth = Growth(self._lineage, tell)
            last = await self.at(node, "stream", partial(self._generate, growth, node, params, make))
            if last is not None:
                return last
            node, params = growth.left

    async def _generate(
        self, growth: Growth, node: ClusterNode, params: SamplingParams, make: Generate, copy: ClusterNode
    ) -> Branch | None:
        """Have a child generated at a copy of a node, and return the last of it; None if a try before has begun it."""
        if growth.child is not None:
            return None
        segment, settings = self._lineage.find(node), self.placed(node, params)
        assert segment is not None, "a segment stays while a call uses it"
        growth.begin(segment, self._fleet.epoch(copy.worker), settings)
        try:
            whole = await make(copy, settings, growth.take)
        finally:
            growth.stop()
        last = growth.end(whole) if not segment.cut else None
        if last is None:
            self._background.start(self._calls.take_back([whole]))
            raise _released_meanwhile(node)
        return last

    async def at(self, node: ClusterNode, what: str, act: Callable[[ClusterNode], Awaitable[T]]) -> T:
        """Make a call at a node, on a worker that has it or is made to have it.

        Raises:
            NodeReleased, UnknownNode: the node is not held.
            RecoveryFailed: as many workers as `attempts` allows were lost over it.
        """
        segment = await self._held(node)
        tries = Tries(f"{what} at node {node.node} of tree {node.tree}", self._fleet, self._recovery)
        segment.pins += 1
        try:
            while tries.left:
                await self._fleet.alive()
                self._lineage.get(node)  # a released node is not rebuilt, and below not used where it has been
                route = self._router.for_node(segment, self._rebuilder.has)
                worker, epoch = route.worker, self._fleet.epoch(route.worker)
                try:
                    copy = await self._copy(segment, route)
                    if copy is None:
                        continue
                    self._lineage.get(node)
                    return await act(copy.at)
                except LOST as error:
                    tries.lost(worker, epoch, error)
                except UnknownNode as error:
                    await self._forgotten(node, error)
                    tries.lost(worker, epoch, error)
                except NodeReleased:
                    raise NodeReleased(node.tree, node.node) from None
                if segment.cut:
                    raise Cancelled(f"node {node.node} of tree {node.tree} was released with all below it")
        finally:
            segment.pins -= 1
            self._discard_all(self._lineage.prune(segment))
        raise tries.failed()

    async def _copy(self, segment: Segment, route: Route) -> Copy | None:
        """The copy of a node that a call at it is to use; None if another one was to be made, and could not be."""
        origin = None
        if route.how == "transfer" and route.owner is not None:
            origin = self._rebuilder.copy_on(segment, route.owner)
        try:
            with self._fleet.under_way(route.worker):
                return await self._rebuilder.ensure(segment, route.worker, origin)
        except NOT_COPIED as error:
            # What was to be moved can be computed, be it that its worker has died; else another one must have it.
            if not isinstance(error, TransferFailed) and not self._rebuilder.is_elsewhere(segment, route.worker):
                raise
            if route.how != "stay":  # else it is somebody else's who began to make it
                missing = missing_tokens(segment, route.worker, self._rebuilder.has)
                self._router.replicator.failed(route.worker, missing, error)
            return None

    async def release(self, node: ClusterNode, *, subtree: bool) -> None:
        """Give a node up, with `subtree` all below it; idempotent."""
        await self._calls.release(self._lineage.release(node, subtree=subtree))

    def copy_of(self, node: ClusterNode) -> ClusterNode:
        """A node's name on a worker that has a copy now; its own name where none has."""
        segment = self._lineage.find(node)
        if segment is not None:
            for worker in range(len(self._fleet)):
                copy = self._rebuilder.copy_on(segment, worker)
                if copy is not None:
                    return copy.at
        return node

    async def settle(self) -> None:
        """Return once nothing is being rebuilt or released in the background."""
        await self._rebuilder.settle()
        await self._background.settle()

    async def _held(self, node: ClusterNode) -> Segment:
        """The record of a held node that is whole."""
        try:
            segment = self._lineage.get(node)
            if segment.growing:
                raise InvalidArgument("node", node, "is being generated: its stream has not ended")
            return segment
        except NodeReleased:
            if await self._lease_is_over():
                raise LeaseExpired(node.tree) from None
            raise

    async def _forgotten(self, node: ClusterNode, unknown: UnknownNode) -> None:
        """A worker does not know a node that is held: it has been restarted, or the lease was closed."""
        if await self._lease_is_over():
            raise UnknownNode(node.tree, node.node) from unknown

    async def _lease_is_over(self) -> bool:
        manager, lease = self._calls.manager, self._calls.lease
        ended: list[int] = await self._calls.ask_manager(lambda: manager.renew.remote([lease]))
        return bool(ended)

    def _discard(self, copy: Copy) -> None:
        self._discard_all([Release(copy)])

    def _discard_all(self, due: Sequence[Release]) -> None:
        if due:
            self._background.start(self._calls.release(due))


def _released_meanwhile(node: ClusterNode) -> Cancelled:
    return Cancelled(f"the children of node {node.node} of tree {node.tree} were released while they were made")

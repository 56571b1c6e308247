"""Where trees live: their nodes, leases, pins and streams."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from dendrite.search.backend import Backend
from serve_apps.decoding import Pace, Releases
from serve_apps.errors import HttpError, node_released, not_found
from serve_apps.events import EventLog, Page
from serve_apps.ids import Ids
from serve_apps.ledger import Ledger
from serve_apps.pins import Pins
from serve_apps.response_formats import grammar_in
from serve_apps.text import TextCodec
from serve_apps.tree_jobs import NodeJob, run_jobs
from serve_apps.tree_records import KvAccount, Record, TreeRecord, locate
from serve_apps.tree_release import give_up
from serve_apps.tree_schemas import GenerateOne, Lease, NodeView, Pinned, StreamView, TreeView
from serve_apps.tree_views import node_view, tree_view
from serve_apps.unbroken import Unbroken

MAX_NODES, MAX_STREAMS, MAX_GRAVES = 65_536, 64, 4_096
"""Nodes of a tree; its streams that can be resumed; expired trees that are remembered."""
_SWEEP_S = 0.25


class TreeHost:
    """Holds trees on one backend. Implements `serve_apps.tree_service.Trees`."""

    def __init__(
        self,
        backend: Backend,
        codec: TextCodec,
        ledger: Ledger,
        *,
        kv_bytes_per_token: int = 0,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._codec, self._ledger, self._clock = backend, codec, ledger, clock
        self._per_token, self._pace = kv_bytes_per_token, pace if pace is not None else Pace()
        self._ids = Ids()
        self._trees: dict[str, TreeRecord] = {}
        self._graves: OrderedDict[str, str] = OrderedDict()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._pins = Pins()
        self._releases = Releases(backend)
        self._unbroken = Unbroken()
        self._sweeper: asyncio.Task[None] | None = None

    # ---------------------------------------------------------------- trees

    async def create(self, owner: str, prompt: Sequence[int], ttl_s: float) -> TreeView:
        """See `Trees`."""
        kv_bytes = len(prompt) * self._per_token
        self._ledger.hold(owner, concurrent_trees=1, kv_bytes=kv_bytes)
        try:
            ref = await self._backend.prefill(prompt)
        except BaseException:
            self._ledger.free(owner, concurrent_trees=1, kv_bytes=kv_bytes)
            raise
        self._ledger.spend(owner, len(prompt))
        account = KvAccount(self._ledger, owner, self._per_token)
        tree = TreeRecord(self._ids.new("tree"), account, self._clock() + ttl_s)
        root = tree.new_node(None, 0)
        root.tokens.extend(prompt)
        root.parts.append((ref, len(prompt)))
        root.kv_bytes = kv_bytes
        self._trees[tree.id] = tree
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        return self._view(tree)

    async def view(self, owner: str, id: str) -> TreeView:
        """See `Trees`."""
        return self._view(self._find(owner, id))

    async def renew(self, owner: str, id: str, ttl_s: float) -> Lease:
        """See `Trees`."""
        self._find(owner, id).expires = self._clock() + ttl_s
        return Lease(id=id, expires_in_s=ttl_s)

    async def delete(self, owner: str, id: str) -> None:
        """See `Trees`."""
        await self._unbroken.do(self._drop(self._find(owner, id)))

    # ---------------------------------------------------------------- nodes

    async def nodes(self, owner: str, id: str, nodes: Sequence[int]) -> list[NodeView]:
        """See `Trees`."""
        tree = self._find(owner, id)
        return [node_view(self._node(tree, node), self._codec) for node in nodes]

    async def fork(self, owner: str, id: str, node: int, n: int, at: int | None) -> list[NodeView]:
        """See `Trees`. A child costs nothing until it generates."""
        tree = self._find(owner, id)
        record = self._live(tree, node)
        own = len(record.tokens)
        place = own if at is None else at
        if place > own or (record.parent is None and place == 0):
            least = 0 if record.parent is not None else 1
            raise HttpError(
                400, f"at={place}: {least} to {own}, the node's own tokens", param="at", code="invalid_value"
            )
        if len(tree.nodes) + n > MAX_NODES:
            raise HttpError(429, f"n={n}: a tree has at most {MAX_NODES} nodes", param="n", code="nodes_limit")
        return [node_view(tree.new_node(record, place), self._codec) for _ in range(n)]

    async def score(self, owner: str, id: str, node: int, continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Trees`."""
        tree = self._find(owner, id)
        record = self._live(tree, node)
        self._ledger.spend(owner, sum(map(len, continuations)))
        ref = await locate(self._backend, record, len(record.tokens))
        return list(await asyncio.gather(*(self._backend.score(ref, tokens) for tokens in continuations)))

    async def pin(self, owner: str, id: str, node: int, ttl_s: float) -> Pinned:
        """See `Trees`."""
        tree = self._find(owner, id)
        record = self._live(tree, node)
        kv_bytes = record.path_length * self._per_token
        self._ledger.hold(owner, pinned_bytes=kv_bytes, kv_bytes=kv_bytes)
        try:
            ref = await locate(self._backend, record, len(record.tokens))
        except BaseException:
            self._ledger.free(owner, pinned_bytes=kv_bytes, kv_bytes=kv_bytes)
            raise
        pin = self._pins.add(owner, ref, self._clock() + ttl_s, kv_bytes)
        return Pinned(id=pin.id, expires_in_s=ttl_s, kv_bytes=kv_bytes)

    async def delete_node(self, owner: str, id: str, node: int, *, subtree: bool) -> None:
        """See `Trees`."""
        tree = self._find(owner, id)
        record = self._node(tree, node)
        records = list(tree.below(record)) if subtree else [record]
        await self._unbroken.do(give_up(tree, records, self._releases, self._pins))

    # ---------------------------------------------------------------- generating

    async def generate(self, owner: str, id: str, nodes: Sequence[int], plan: GenerateOne) -> StreamView:
        """See `Trees`."""
        tree = self._find(owner, id)
        records = [self._live(tree, node) for node in nodes]
        for record in records:
            if record.job is not None:
                raise HttpError(409, f"node {record.id} is generating", param="nodes", code="node_busy")
        grammar = grammar_in(plan.response_format)
        reserved = {record.id: self._most_bytes(record, plan.max_tokens) for record in records}
        tree.account.hold(sum(reserved.values()))
        log, stream = EventLog(), self._ids.new("stream")
        tree.streams[stream] = log
        jobs = [
            NodeJob(
                self._backend,
                self._codec,
                record,
                f"node {record.id} of {tree.id}",
                plan,
                grammar,
                index,
                self._pace,
                log.add,
                self._releases,
            )
            for index, record in enumerate(records)
        ]

        def ended(record: Record, generated: int) -> None:
            kv_bytes = generated * self._per_token
            tree.generated += generated
            self._ledger.spend(owner, generated)
            tree.account.free(reserved[record.id] - kv_bytes)
            record.kv_bytes += kv_bytes

        lengths = [len(record.tokens) for record in records]
        self._jobs[stream] = run_jobs(jobs, log, ended)
        self._trim_streams(tree)
        return StreamView(id=stream, nodes=list(nodes), lengths=lengths)

    async def settled(self, owner: str, id: str, stream: str) -> None:
        """See `Trees`."""
        self._stream(self._find(owner, id), stream)
        await asyncio.shield(self._jobs[stream])

    async def read(self, owner: str, id: str, stream: str, after: int, wait_s: float) -> Page:
        """See `Trees`."""
        return await self._stream(self._find(owner, id), stream).read(after, wait_s)

    async def aclose(self) -> None:
        """Give up all trees and pins."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for tree in list(self._trees.values()):
            await self._drop(tree)
        await self._unbroken.settle()
        self._expire_pins(math.inf)
        await self._releases.settle()

    # ---------------------------------------------------------------- helpers

    def _find(self, owner: str, id: str) -> TreeRecord:
        tree = self._trees.get(id)
        if tree is None or tree.owner != owner:
            if self._graves.get(id) == owner:
                raise HttpError(410, f"the lease of the tree {id!r} has run out", code="lease_expired")
            raise self._ids.missing("tree", id)
        return tree

    def _node(self, tree: TreeRecord, node: int) -> Record:
        if node not in tree.nodes:
            raise not_found("node", str(node))
        return tree.nodes[node]

    def _live(self, tree: TreeRecord, node: int) -> Record:
        record = self._node(tree, node)
        if record.released:
            raise node_released(node)
        return record

    def _stream(self, tree: TreeRecord, stream: str) -> EventLog:
        if stream not in tree.streams:
            raise not_found("stream", stream)
        return tree.streams[stream]

    def _view(self, tree: TreeRecord) -> TreeView:
        return tree_view(tree, self._codec, self._clock())

    def _most_bytes(self, record: Record, tokens: int) -> int:
        """Bytes of KV that so many more tokens of a node come to, as far as the context has room for them."""
        return min(tokens, max(0, self._codec.max_context - record.path_length)) * self._per_token

    def _trim_streams(self, tree: TreeRecord) -> None:
        for stream in list(tree.streams)[:-MAX_STREAMS]:
            if self._jobs[stream].done():
                del tree.streams[stream], self._jobs[stream]

    async def _drop(self, tree: TreeRecord) -> None:
        if self._trees.pop(tree.id, None) is None:
            return
        await give_up(tree, list(tree.nodes.values()), self._releases, self._pins)
        for stream in tree.streams:
            self._jobs.pop(stream)
        self._ledger.free(tree.owner, concurrent_trees=1)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = self._clock()
            self._expire_pins(now)
            for tree in list(self._trees.values()):
                if tree.id in self._trees and tree.expires <= now:  # asked now: the one before may have taken a while
                    self._graves[tree.id] = tree.owner
                    await self._unbroken.do(self._drop(tree))
            while len(self._graves) > MAX_GRAVES:
                self._graves.popitem(last=False)

    def _expire_pins(self, now: float) -> None:
        over, free = self._pins.expire(now)
        self._releases.release(*free)
        for pin in over:
            self._ledger.free(pin.owner, pinned_bytes=pin.kv_bytes, kv_bytes=pin.kv_bytes)

"""The actor that owns one engine and all that lives in it."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from actors import cores
from actors.admission import MAX_CALLS, Admission
from actors.calls import RunningCalls
from actors.deltas import Batch, Load
from actors.engine_gauge import EngineGauge
from actors.exchange import Exchange
from actors.held_nodes import HeldNodes
from actors.incarnation import incarnation, this_actor
from actors.kv_transfer import Arrival, KvSource
from actors.metrics import Recorder
from actors.metrics_reporter import report_on, report_worker
from actors.outbox import Outbox, Receipt
from actors.peers import Peers
from actors.refs import ClusterNode, Given, lease_of, worker_name
from actors.rpc import call
from actors.tensor_group import followers_for
from actors.worker_stats import WorkerHealth, WorkerStats
from dendrite.config import EngineConfig, SamplingParams
from dendrite.errors import Cancelled, ClusterError, InvalidArgument, StaleEpoch
from dendrite.limits import check_whole
from dendrite.logs import set_up_logs_from_environment
from dendrite.search.backend import Branch

if TYPE_CHECKING:
    from dendrite.kv.path_kv import PathKv

T = TypeVar("T")

MAX_CHILDREN = 65_536
"""Most children of one `expand`, so that a slip of a caller cannot fill a worker with nodes."""


class ModelWorker:
    """One engine behind messages. A Ray actor: its methods run on one event loop, the engine's steps on a thread.

    Concurrent calls join the engine's running batch. The worker decides alone what is held here; it tells the tree
    manager afterwards, in batches, and no call waits for that.
    """

    def __init__(
        self,
        index: int,
        model: str,
        config: EngineConfig,
        threads: int,
        managers: Peers,
        max_calls: int = MAX_CALLS,
    ) -> None:
        """Take note of the settings; a restarted worker loads the model here too, for nobody calls `load` again.

        Args:
            index: the worker's number.
            model: folder of the model.
            config: the engine's settings.
            threads: the engine's CPU threads.
            managers: gives the shards of the tree manager, the first one first.
            max_calls: most calls under way; more are refused.
        """
        set_up_logs_from_environment()
        self._index, self._model, self._config, self._threads = index, model, config, threads
        self._managers = managers()
        self._epoch = incarnation()
        self._calls = RunningCalls()
        self._admission = Admission(index, max_calls)
        lent = (self.prefill, self.expand, self.stream, self.append, self.score, self.value, self.import_kv)
        methods = {method.__name__: method for method in (*lent, self.cancel, self.release)}
        self._exchange = Exchange(worker_name(index), methods)
        sends = [functools.partial(self._send, shard) for shard in range(len(self._managers))]
        self._outbox = Outbox(index, self._epoch, sends, self._load, lambda: self._nodes.expired)
        self._began = time.monotonic()
        if self._epoch:
            self._start()

    async def load(self) -> None:
        """Load the model and report to the tree manager. Apart from the constructor, so that a typed error gets out.

        Raises:
            ModelError: the model cannot be loaded.
        """
        self._start()
        await self._outbox.flush()

    def _start(self) -> None:
        cores.take()  # first: torch's threads are to be there too
        import torch  # here and below: a process that only names this class should not load torch

        from dendrite.engine.async_engine import AsyncEngine
        from dendrite.engine.engine import Engine

        torch.set_num_threads(self._threads)
        others = followers_for(self._model, self._config, self._threads)
        engine = Engine.from_pretrained(self._model, config=self._config, followers=others)
        self._engine = AsyncEngine(engine, threaded=True)
        self._gauge = EngineGauge(lambda: self._engine.run(engine.stats), engine.stats())
        self._nodes = HeldNodes(self._index, self._engine, self._outbox)
        self._outbox.start()
        self._recorder = Recorder(worker=str(self._index))
        self._reporting = asyncio.get_running_loop().create_task(report_on(self._report))

    async def prefill(self, call_id: int, tree: int, prompt: str | Sequence[int], seed: int | None) -> ClusterNode:
        """Compute a prompt as the root of `tree`. The caller has made both ids under its lease.

        Raises:
            LeaseExpired: the lease has run out.
            Cancelled: by `cancel` with the id of this call, as in every method that takes one.
            Overloaded, WorkerDraining: nothing was done, as in every such method.
        """
        return await self._run(call_id, tree, self._nodes.prefill(tree, prompt, seed))

    async def expand(self, call_id: int, tree: int, node: int, n: int, params: SamplingParams) -> list[Branch]:
        """Fork a node `n` times and decode all children, in one message.

        Raises:
            Released: the node has been released, be it while its children were decoded.
            UnknownNode, LeaseExpired, InvalidArgument: nothing was done.
        """
        check_whole("n", n, 1, MAX_CHILDREN)
        return await self._run(
            call_id, tree, self._nodes.grow(tree, node, lambda at: self._engine.expand(at, n, params))
        )

    async def exchange(self, client: int, message: bytes) -> bytes:
        """Begin calls of a client, and answer with what has come of those under way: see `actors.exchange`."""
        return await self._exchange(client, message)

    async def stream(
        self, call_id: int, tree: int, node: int, params: SamplingParams, every_s: float, client: int
    ) -> Branch:
        """Fork a node once and decode the child; `client`, by whose exchange this is called, is told of what has come.

        The first tokens are told at once, then those of `every_s` seconds at a time. Raises what `expand` raises.
        """
        tell = functools.partial(self._exchange.tell, client)
        return await self._run(call_id, tree, self._nodes.stream(call_id, tree, node, params, every_s, tell))

    async def append(self, call_id: int, tree: int, node: int, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Fork a node once a continuation and write it there. Raises what `expand` raises."""
        if not isinstance(continuations, Sequence) or not 1 <= len(continuations) <= MAX_CHILDREN:
            raise InvalidArgument("continuations", continuations, f"must be a sequence of 1 to {MAX_CHILDREN}")
        grown = self._nodes.grow(tree, node, lambda parent: self._engine.append(parent, continuations))
        return await self._run(call_id, tree, grown)

    async def export_kv(self, tree: int, node: int, start: int, end: int) -> PathKv:
        """The KV of tokens `start` .. `end` - 1 of a node's path, for another worker; see `actors.kv_transfer`.

        Raises:
            LeaseExpired, NodeReleased, UnknownNode, KvNotComputed, InvalidArgument: there is no such KV here.
        """
        return await self._nodes.export(tree, node, start, end)

    async def import_kv(
        self, call_id: int, tree: int, parent: int | None, source: KvSource, seed: int | None
    ) -> Arrival:
        """Fetch KV from another worker and make a node of it, below a node or (None) as the root of `tree`.

        Raises:
            TransferFailed, OutOfPages, KvNotComputed, KvFormatMismatch: nothing was made.
        """

        async def fetch_and_adopt() -> Arrival:
            part = await source.fetch()
            return Arrival(await self._nodes.adopt(tree, parent, part, seed), len(part.tokens), part.nbytes)

        return await self._run(call_id, tree, fetch_and_adopt())

    async def tokenize(self, text: str, special: bool) -> tuple[int, ...]:
        """The token ids of a text, with those that begin a sequence if `special`."""
        return await self._engine.tokenize(text, special=special)

    async def score(self, call_id: int, tree: int, node: int, tokens: Sequence[int]) -> list[float]:
        """Natural-log probability of each of `tokens` as a continuation of a node."""
        return await self._run(call_id, tree, self._engine.score(self._nodes.get(tree, node), tokens))

    async def value(self, call_id: int, tree: int, node: int) -> float | None:
        """The value head's estimate at a node, None without a value head."""
        return await self._run(call_id, tree, self._engine.value(self._nodes.get(tree, node)))

    async def add_replica(self, tree: int, node: int, original: ClusterNode) -> None:
        """Have it on record that a node held here is a copy of another worker's."""
        self._nodes.add_replica(tree, node, original)

    async def cancel(self, call_id: int) -> None:
        """Cancel a call under way; what it was making is released."""
        self._calls.cancel(call_id)

    async def release(self, nodes: Sequence[Given]) -> None:
        """Give nodes up. Idempotent: a node that is not held is nothing to do."""
        await self._nodes.release(nodes)

    async def reclaim(self, lease: int, expired: bool, epoch: int | None = None) -> None:
        """Cancel what runs under a lease and release all that is held under it.

        With `expired`, later calls under the lease are refused: its holder may not know yet. Otherwise its holder
        has closed it, and makes no more. `epoch` is the tree manager's, if it is the one that asks.

        Raises:
            StaleEpoch: a later incarnation of the manager is known here.
        """
        current = self._outbox.couriers[0].shard_epoch
        if epoch is not None and epoch < current:
            raise StaleEpoch("the tree manager", epoch, current)
        if expired:
            self._nodes.expire(lease)
        await self._calls.cancel_lease(lease)
        await self._nodes.close(lease)

    async def drain(self, timeout_s: float = 60.0) -> None:
        """Empty the worker for good: refuse new work, end what runs, release everything, and tell the tree manager.

        Calls that have not ended by themselves within `timeout_s` are cancelled. Idempotent.
        """
        self._admission.close()
        self._outbox.draining = True
        await self._outbox.flush()
        if not await self._admission.idle(timeout_s):
            await asyncio.gather(*(self._calls.cancel_lease(lease) for lease in self._admission.leases))
        for lease in self._nodes.leases:
            await self._nodes.close(lease)
        await self._outbox.flush()

    async def stats(self) -> WorkerStats:
        """What is held here now, and totals of the engine: of before, if it is in the middle of a long step."""
        engine, age_s = await self._gauge.read()
        refused, reports = self._admission.refused, self._outbox.reports
        return WorkerStats(self._index, engine, len(self._nodes), len(self._calls), refused, reports, age_s)

    async def health(self) -> WorkerHealth:
        """Answer at once, whatever the engine does."""
        now = time.monotonic()
        up, silent, draining = now - self._began, self._gauge.silent_s, self._admission.closed
        return WorkerHealth(self._index, os.getpid(), self._threads, up, self._epoch, silent, draining)

    async def check(self) -> None:
        """Verify the engine's KV invariants.

        Raises:
            InvariantViolation: one does not hold.
        """
        await self._engine.run(self._engine.engine.check)

    async def flush(self) -> None:
        """Return once the tree manager knows all that has happened here."""
        await self._outbox.flush()

    # What a call does is one task, from the engine's work to the note of what it made, so that whoever cancels it and
    # waits for its end finds either nothing made or everything on record.

    async def _run(self, call_id: int, tree: int, work: Coroutine[Any, Any, T]) -> T:
        lease = lease_of(call_id)
        try:
            self._nodes.check_lease(tree)
            self._admission.enter(lease)
        except ClusterError:
            work.close()
            raise
        began = time.monotonic()
        try:
            return await self._calls.run(call_id, work)
        except Cancelled:
            self._nodes.check_lease(tree)
            raise
        finally:
            self._admission.leave(lease, time.monotonic() - began)

    async def _load(self) -> Load:
        stats = await self.stats()
        return Load(stats.live_nodes, stats.engine.pages_held)

    async def _report(self) -> None:
        from dendrite.kv.sharing import shared_pages

        shared = await self._engine.run(lambda: shared_pages(self._engine.engine.cache))
        report_worker(self._recorder, await self.stats(), shared)

    async def _send(self, shard: int, batch: Batch) -> Receipt:
        manager = self._managers[shard]
        introduces = batch.shard_epoch is None and batch.status is not None
        reply = manager.report.remote(batch, this_actor()) if introduces else manager.apply.remote(batch)
        receipt: Receipt = await call(reply, "the tree manager")
        return receipt

"""The `Backend` verbs over a cluster's actors."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from actors.exchange import Piece
from actors.fleet import Fleet
from actors.node_copies import NodeCopies
from actors.node_maker import NodeMaker
from actors.recovery import RecoveryStats, Tries
from actors.refs import ClusterNode, worker_name
from actors.routing import Router
from actors.rpc import ActorLost, Handle, call
from actors.tree_manager import ManagerStats
from actors.worker_calls import WorkerCalls
from actors.worker_stats import WorkerHealth, WorkerStats, total
from dendrite.config import SamplingParams
from dendrite.errors import InvalidArgument, UnknownNode
from dendrite.search.backend import BackendStats, Branch, NodeRef
from dendrite.spans import span

_ASK_AGAIN_S = 0.05
_SHORTEST_S = 1e-6
"""What a call takes at least, by a clock that may not have moved."""


class ClusterClient:
    """Prefill, expand, score and release on the workers of a cluster, under one lease.

    Implements `dendrite.search.backend.StreamingBackend`; its node references are `ClusterNode`s. May be used from
    several event loops, one after the other.

    A reference is good until its node is released, whatever becomes of the worker that made it: where that worker is
    lost, the node is rebuilt on another from its tokens, with its shared ancestors once, and the call made again.
    Sampling keyed by `SamplingParams.seed` draws the same tokens there. Without one the key is the node's place in the
    worker's tree, which a rebuilt node does not keep. A document under `SamplingParams.grammar` goes on there as well.
    """

    def __init__(
        self,
        manager: Handle,
        workers: Sequence[Handle],
        lease: int,
        *,
        fleet: Fleet | None = None,
        router: Router | None = None,
        recovery: RecoveryStats | None = None,
    ) -> None:
        """Use a cluster under a lease.

        Args:
            manager: the tree manager.
            workers: the model workers, in the order of their numbers.
            lease: an open lease, which its holder renews.
            fleet: what this process knows of the workers; clients of one process share it.
            router: chooses workers by it; shared likewise.
            recovery: where to count recoveries; shared likewise.
        """
        self._manager, self._lease = manager, lease
        self._fleet = fleet if fleet is not None else Fleet(workers)  # one without workers is false
        self._recovery = recovery if recovery is not None else RecoveryStats()
        router = router or Router(self._fleet)
        self.replicator = router.replicator
        """Decides on copies of nodes for the sake of long queues, and counts them."""
        self._calls = WorkerCalls(manager, lease, self._fleet)
        self._maker = NodeMaker(self._calls, router, self._recovery)
        self._copies = NodeCopies(self._calls, self._maker, router, self._recovery)

    # ---------------------------------------------------------------- the backend's verbs

    async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The token ids of a text, with those that begin a sequence if `special`. All workers have one tokenizer."""
        tries = Tries("tokenize", self._fleet, self._recovery)
        while tries.left:
            worker = (await self._fleet.alive())[0]
            epoch = self._fleet.epoch(worker)
            try:
                reply = self._fleet.handle(worker).tokenize.remote(text, special)
                tokens: tuple[int, ...] = await call(self._fleet.watch(worker, reply), worker_name(worker))
            except ActorLost as error:
                tries.lost(worker, epoch, error)
            else:
                return tokens
        raise tries.failed()

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> ClusterNode:
        """Compute a prompt and return its root, on the worker that has most of it cached or else the least loaded."""
        tokens = await self.tokenize(prompt) if isinstance(prompt, str) else prompt
        with span("prefill"):
            root, epoch = await self._maker.prefill(tokens, seed)
        self._copies.add_root(root, epoch, tuple(tokens), seed)
        return root

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        """Fork `node` n times and decode all children, in one message. Cancelling the awaiting task releases them."""

        async def expand_at(at: ClusterNode) -> list[Branch]:
            with self._timed(at.worker) as steps:
                branches: list[Branch] = await self._calls.send(
                    at.worker, "expand", at.tree, at.node, n, good_anywhere, undo=self._calls.take_back
                )
                steps.extend(len(branch.tokens) for branch in branches)
            return branches

        at = self._known(node)
        good_anywhere = self._copies.placed(at, params)
        with span("expand", tree=str(at.tree), node=at.node, n=n):
            return await self._copies.grow(at, "expand", expand_at, good_anywhere)

    async def stream(self, node: NodeRef, params: SamplingParams, every_s: float) -> AsyncGenerator[Branch, None]:
        """Fork `node` once and decode the child, yielding it again and again with the tokens that are new.

        Where the worker is lost in the middle a child of it follows, with what comes next; both are the caller's.
        """

        async def stream_at(at: ClusterNode, settings: SamplingParams, tell: Callable[[Piece], None]) -> Branch:
            with self._timed(at.worker) as steps:
                whole = await self._calls.stream(at, settings, every_s, tell)
                steps.append(len(whole.tokens))
            return whole

        at = self._known(node)
        told: asyncio.Queue[Branch | None] = asyncio.Queue()
        with span("stream", tree=str(at.tree), node=at.node):
            growing = asyncio.create_task(self._copies.stream(at, params, stream_at, told.put_nowait))
        growing.add_done_callback(lambda _: told.put_nowait(None))
        given: NodeRef = at
        try:
            while branch := await told.get():
                given = branch.node
                yield branch
            last = growing.result()
            given = last.node
            yield last
        finally:
            await self._end_stream(growing, told, given)

    async def _end_stream(
        self, growing: asyncio.Task[Branch], told: asyncio.Queue[Branch | None], given: NodeRef
    ) -> None:
        """End a stream, and give up the nodes of it that its reader does not know."""
        growing.cancel()
        [last] = await asyncio.gather(growing, return_exceptions=True)
        unread = [told.get_nowait() for _ in range(told.qsize())] + [last]
        for node in {branch.node for branch in unread if isinstance(branch, Branch)} - {given}:
            await self.release(node)

    async def append(self, node: NodeRef, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Fork `node` once a continuation and write it there. Cancelling the awaiting task releases the children."""
        return await self._copies.grow(self._known(node), "append", lambda at: self._maker.append(at, continuations))

    async def score(self, node: NodeRef, tokens: Sequence[int]) -> list[float]:
        """Natural-log probability of each of `tokens` as a continuation of `node`."""

        async def score_at(at: ClusterNode) -> list[float]:
            scores: list[float] = await self._calls.send(at.worker, "score", at.tree, at.node, tokens)
            return scores

        return await self._copies.at(self._known(node), "score", score_at)

    async def value(self, node: NodeRef) -> float | None:
        """The value head's estimate at `node`, None without a value head."""

        async def value_at(at: ClusterNode) -> float | None:
            value: float | None = await self._calls.send(at.worker, "value", at.tree, at.node)
            return value

        return await self._copies.at(self._known(node), "value", value_at)

    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        """Give the node up (and all below it); idempotent."""
        await self._copies.release(self._known(node), subtree=subtree)

    async def stats(self) -> BackendStats:
        """Totals over the workers that are alive.

        Raises:
            ClusterError: none is.
        """
        replies = await asyncio.gather(*self._calls.ask("stats"), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, ActorLost):
                raise reply
        living = [reply for reply in replies if not isinstance(reply, BaseException)]
        if not living:
            raise next(reply for reply in replies if isinstance(reply, BaseException))
        return total(living)

    # ---------------------------------------------------------------- what is going on

    async def worker_stats(self, *, fresh: bool = False) -> list[WorkerStats]:
        """What each worker has done since it was started, and holds. Waits for one that is being restarted.

        With `fresh` also for an engine in the middle of a long step, instead of taking its last answer.
        """
        while True:
            found: list[WorkerStats] = list(await asyncio.gather(*self._calls.ask("stats")))
            if not fresh or not any(worker.age_s for worker in found):
                return found
            await asyncio.sleep(_ASK_AGAIN_S)

    async def health(self) -> list[WorkerHealth]:
        """Signs of life of all workers.

        Raises:
            ActorLost: a worker is not alive.
        """
        replies = {worker: self._fleet.handle(worker).health.remote() for worker in self._fleet.members}
        return list(await asyncio.gather(*(call(reply, worker_name(worker)) for worker, reply in replies.items())))

    async def manager_stats(self) -> ManagerStats:
        """What the tree manager knows, once it has heard of all that has happened on the workers."""
        await asyncio.gather(*self._calls.ask("flush"))
        stats: ManagerStats = await self._calls.ask_manager(lambda: self._manager.stats.remote())
        return stats

    async def recovery_stats(self) -> RecoveryStats:
        """What this client, and those that share its counts, have recovered from."""
        return dataclasses.replace(self._recovery)

    async def lineage(self, node: NodeRef) -> tuple[int, ...]:
        """All tokens from the root to the end of `node`, as the tree manager has them on record.

        Raises:
            UnknownNode: it is not a node of the cluster, or it is released and nothing held descends from it.
        """
        at = self._copies.copy_of(self._known(node))
        ask = functools.partial(self._manager.lineage.remote, at.tree, at.node)
        tokens: tuple[int, ...]
        try:
            tokens = await self._calls.ask_manager(ask)
        except UnknownNode:  # it may be newer than what the manager has heard
            await self._calls.flush(at.worker)
            tokens = await self._calls.ask_manager(ask)
        return tokens

    async def holders(self, node: NodeRef) -> tuple[int, ...]:
        """The workers that have the KV of `node`, held or for a descendant's sake, as the tree manager knows."""
        at = self._known(node)
        await asyncio.gather(*self._calls.ask("flush"))
        workers: tuple[int, ...] = await self._calls.ask_manager(lambda: self._manager.holders.remote(at.tree, at.node))
        return workers

    async def check(self) -> None:
        """Verify the KV invariants of all workers.

        Raises:
            InvariantViolation: one does not hold.
        """
        await asyncio.gather(*self._calls.ask("check"))

    async def settle(self) -> None:
        """Return once calls that were cancelled have left nothing behind."""
        await self._calls.settle()
        await self._copies.settle()

    async def reclaim(self) -> None:
        """Have what is still held under the lease released, where the tree manager does not know of it."""
        await self.settle()
        await self._maker.reclaim()

    @contextlib.contextmanager
    def _timed(self, worker: int) -> Iterator[list[int]]:
        """Measure a call that decodes; takes the numbers of tokens of what it has decoded side by side."""
        steps: list[int] = []
        began, before = time.monotonic(), self._fleet.call_seconds(worker)
        yield steps
        seconds = max(time.monotonic() - began, _SHORTEST_S)
        calls = (self._fleet.call_seconds(worker) - before) / seconds
        self._fleet.rates(worker).decoded(seconds, max(steps), calls)

    def _known(self, node: NodeRef) -> ClusterNode:
        if not isinstance(node, ClusterNode) or not 0 <= node.worker < len(self._fleet):
            raise InvalidArgument("node", node, "must be a node of this cluster")
        return node

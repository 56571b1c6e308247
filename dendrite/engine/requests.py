"""What the engine has been asked for and has not ended, and where each request stands.

    add ──► waiting ──► running ──► finished
                 │   ▲       ▲   │
       ancestors │   └───────┼───┘ pages run out: the KV of the lowest rank is dropped (tokens stay)
    not computed ▼           │ computed
               computing ────┘

A generation waits on one of two things: KV that is not written yet (its own or an ancestor's), or the hidden state it
samples from (a *tip*), which is missing after a fork at an inner token. Both are filled in by rows of the same batch.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from itertools import chain

from dendrite.engine.generation import Compute, Generation
from dendrite.engine.idle_kv import IdleKv, gone
from dendrite.engine.plan import Chunk, Retip
from dendrite.errors import Cancelled, DendriteError
from dendrite.kv.ancestry import pending_ancestors
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


class Requests:
    """All requests of one engine.

    Attributes:
        waiting: generations that have not been admitted, by rank, each with its rank.
        computing: given tokens to write, by node, in the order of their arrival; generations may wait for them.
        retips: hidden states to compute again, by node and length; generations wait for them.
        running: the batch: generations of one tree side by side, in the order of their arrival.
        version: changes with `running`, so that tensors made from it can be kept.
        idle: nodes with KV that no request works on.
    """

    def __init__(self, cache: KvCache) -> None:
        self.waiting: list[tuple[tuple[float, int], Generation]] = []
        self.computing: dict[Node, Compute] = {}
        self.retips: dict[tuple[Node, int], Retip] = {}
        self.running: list[Generation] = []
        self.version = 0
        self.idle = IdleKv(cache)
        self._busy: set[Node] = set()  # nodes with a generation that has not ended
        self._ready: list[Generation] = []  # those that waited for what has been computed since
        self._ended: list[Generation | Compute] = []  # those that ended other than by running

    # ---------------------------------------------------------------- what is asked for

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        return bool(self.waiting or self.running or self.computing or self.retips or self._ready or self._ended)

    @property
    def waiting_count(self) -> int:
        """Generations that have not started, or wait for KV or a tip."""
        return len(self.waiting) + sum(1 for _ in self.blocked())

    def is_busy(self, node: Node) -> bool:
        """Whether a generation on `node` has not ended."""
        return node in self._busy

    def add(self, generation: Generation) -> None:
        """Queue a generation by its rank."""
        if not generation.probe:
            self._busy.add(generation.node)
        bisect.insort(self.waiting, (generation.rank(), generation), key=lambda entry: entry[0])

    def compute(self, job: Compute) -> None:
        """Queue given tokens; a node already being computed keeps its job."""
        self.idle.discard(job.node)
        self.computing.setdefault(job.node, job)

    def blocked(self) -> Iterator[Generation]:
        """Those that will run as soon as KV or a tip is there."""
        yield from self._ready
        for job in self.computing.values():
            yield from job.waiting
        for retip in self.retips.values():
            yield from retip.waiting

    # ---------------------------------------------------------------- how they get on

    def start(self, generation: Generation) -> None:
        """Join the running batch beside the generations of the same tree, whose pages it may share."""
        if generation.probe:
            generation.finish_reason = "stop"
            self._ended.append(generation)
            return
        self.idle.discard(generation.node)
        bisect.insort(self.running, generation, key=lambda other: (other.node.tree.id, other.order))
        self.version += 1

    def extend(self, generation: Generation, job: Compute) -> None:
        """Have tokens computed that were written to a running generation's node; it goes on after them."""
        self.running.remove(generation)
        self.version += 1
        job.waiting.append(generation)
        self.compute(job)

    def computed(self, chunk: Chunk) -> int:
        """Note that a chunk has run; returns how many of its tokens had been computed before."""
        node = chunk.job.node
        again = self.idle.recomputed(node, chunk.start, chunk.count, last=chunk.last)
        if chunk.last:
            del self.computing[node]
            chunk.job.done = True
            self._rest(node, 0.0)
            self._ready += [generation for generation in chunk.job.waiting if not generation.done]
        return again

    def tipped(self, retip: Retip) -> None:
        """Note that a retip has run: those that waited for it may start."""
        del self.retips[retip.node, retip.length]
        for generation in retip.waiting:
            self.start(generation)

    def interrupted(self, generations: Iterable[Generation]) -> None:
        """Put running generations back into the queue: their step has failed, or their pages are needed by others."""
        for generation in generations:
            self.running.remove(generation)
            self._rest(generation.node, generation.priority)
            self.add(generation)
        self.version += 1

    def filled(self, node: Node) -> None:
        """Note that a node has got its KV other than by running."""
        self._rest(node, 0.0)

    # ---------------------------------------------------------------- how they end

    def finished(self, generations: Iterable[Generation]) -> None:
        """Take generations that have ended out of the running batch."""
        for generation in generations:
            self._busy.discard(generation.node)
            self._rest(generation.node, generation.priority)
        self.running = [generation for generation in self.running if not generation.done]
        self.version += 1

    def cancel(self, generation: Generation) -> None:
        """Take a generation out of every queue; its node keeps what it has generated."""
        if generation.done:
            return
        generation.finish_reason = "cancelled"
        self._forget(generation)

    def fail(self, request: Generation | Compute, error: DendriteError) -> None:
        """End a request with an error, and with a job all that waits for it or continues its KV."""
        request.error = error
        self._ended.append(request)
        if isinstance(request, Compute):
            del self.computing[request.node]
            request.done = True
            self._rest(request.node, 0.0)
            for generation in request.waiting:
                self.fail(generation, error)
            for job in [j for j in self.computing.values() if request.node in pending_ancestors(j.node)]:
                if self.computing.get(job.node) is job:  # else it has failed with one of the others
                    self.fail(job, error)  # what continues KV that cannot be computed cannot be computed either
        else:
            request.finish_reason = "cancelled" if isinstance(error, Cancelled) else "error"
            self._forget(request)

    def fail_alone(self, generation: Generation, error: DendriteError) -> None:
        """End a generation with an error that concerns no other; its node tells of it from now on."""
        self.fail(generation, error)
        generation.node.finish_reason, generation.node.error = generation.finish_reason, error

    def discard_released(self) -> None:
        """End what was asked of nodes that have been released since."""
        waiting = (generation for _, generation in self.waiting)
        for generation in [g for g in chain(self.running, waiting, self.blocked()) if g.node.released]:
            self.fail(generation, Cancelled(f"node {generation.node.id} was released while it was decoding"))
        for job in [job for job in self.computing.values() if gone(job.node)]:
            if self.computing.get(job.node) is not job:
                continue  # it has failed with one that it continues
            self.fail(job, Cancelled(f"node {job.node.id} was released before it was computed"))

    def take_ready(self) -> list[Generation]:
        """Generations whose KV, which they waited for, has been computed since the last call, by rank."""
        ready, self._ready = sorted(self._ready, key=Generation.rank), []
        return ready

    def take_ended(self) -> list[Generation | Compute]:
        """Requests that ended since the last call other than by running: failed, or probes that have their tip."""
        ended, self._ended = self._ended, []
        return ended

    def _forget(self, generation: Generation) -> None:
        if generation in self.running:
            self.running.remove(generation)
            self.version += 1
        self.waiting = [entry for entry in self.waiting if entry[1] is not generation]
        for queue in (self._ready, *(job.waiting for job in self.computing.values())):
            if generation in queue:
                queue.remove(generation)
        for key, retip in list(self.retips.items()):
            if generation in retip.waiting:
                retip.waiting.remove(generation)
                if not retip.waiting:
                    del self.retips[key]
        if not generation.probe:
            self._busy.discard(generation.node)
            self._rest(generation.node, generation.priority)

    def _rest(self, node: Node, priority: float) -> None:
        """Let the KV of a node be dropped when pages run out, unless something still works on it."""
        if node.computed and node not in self.computing and not gone(node):
            self.idle.add(node, priority)

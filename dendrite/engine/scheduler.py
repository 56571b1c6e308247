"""What runs in the next step: which nodes decode, which given tokens are computed, and who gives up pages for it.

    submit ──► waiting ──► running ──► done
                 │  ▲         │
     ancestors   │  │         │ pages run out: the KV of the lowest rank is dropped
     not computed▼  │computed ▼
              computing ◄── dropped (tokens stay)

A generation waits on one of two things: KV that is not written yet (its own or an ancestor's), or the hidden state it
samples from (a *tip*), which is missing after a fork at an inner token. Both are filled in by rows of the same batch.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate

from dendrite.config import EngineConfig
from dendrite.engine.generation import Compute, Generation
from dendrite.engine.paths import find_tip, token_owner
from dendrite.engine.plan import Chunk, Plan, Retip
from dendrite.errors import Cancelled, DendriteError, OutOfPages
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from dendrite.kv.pages import TailCopy

_RUNNING_PER_SPARE_PAGE = 16
_AHEAD_TOKENS = 32
"""How far admission looks ahead: generations that run out of pages sooner would be preempted, and computed again."""


class Scheduler:
    """Continuous batching over nodes, by rank: priority first, arrival second.

    Decoding nodes come first in a step, then prefill chunks fill what is left of `max_batch_tokens`. When pages run
    out, idle leaves lose their KV before running nodes do, and the lowest rank before a higher one; nothing but KV is
    lost.
    """

    def __init__(self, cache: KvCache, config: EngineConfig, longest_context: int, max_burst: int = 1) -> None:
        """Plan for one engine.

        Args:
            cache: whose pages are reserved.
            config: the limits of a step.
            longest_context: tokens at which a generation must end.
            max_burst: most tokens that a node may generate in one step.
        """
        self._cache = cache
        self._config = config
        self._longest_context = longest_context
        self._max_burst = max_burst
        self._waiting: list[tuple[tuple[float, int], Generation]] = []
        self._computing: dict[Node, Compute] = {}
        self._retips: dict[tuple[Node, int], Retip] = {}
        self._idle: dict[Node, float] = {}  # nodes with KV that do not run, oldest first, with their priority
        self._dropped: dict[Node, int] = {}  # tokens each node had computed before its KV was dropped
        self.running: list[Generation] = []
        self._busy: set[Node] = set()  # nodes with a generation that has not ended
        self._ended: list[Generation | Compute] = []  # those that ended other than by running
        self.version = 0  # changes with `running`, so that tensors made from it can be kept
        self.preemptions = 0
        self.dropped_pages = 0

    # ---------------------------------------------------------------- what is asked for

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        return bool(self._waiting or self.running or self._computing or self._retips or self._ended)

    @property
    def waiting_count(self) -> int:
        """Generations that have not started, or wait for KV or a tip."""
        blocked = sum(len(job.waiting) for job in self._computing.values())
        return len(self._waiting) + blocked + sum(len(retip.waiting) for retip in self._retips.values())

    def is_busy(self, node: Node) -> bool:
        """Whether a generation on `node` has not ended."""
        return node in self._busy

    def add(self, generation: Generation) -> None:
        """Queue a generation by its rank."""
        if not generation.probe:
            self._busy.add(generation.node)
        bisect.insort(self._waiting, (generation.rank(), generation), key=lambda entry: entry[0])

    def compute(self, job: Compute) -> None:
        """Queue given tokens; a node already being computed keeps its job."""
        self._idle.pop(job.node, None)
        self._computing.setdefault(job.node, job)

    def take_ended(self) -> list[Generation | Compute]:
        """Requests that ended since the last call other than by running: failed, or probes that have their tip."""
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, generation: Generation) -> None:
        """Take a generation out of every queue; its node keeps what it has generated."""
        if generation.done:
            return
        generation.finish_reason = "cancelled"
        self._forget(generation)

    def fail(self, generation: Generation, error: DendriteError) -> None:
        """End a generation with an error that concerns no other; its node tells of it from now on."""
        self._fail(generation, error)
        generation.node.finish_reason, generation.node.error = generation.finish_reason, error

    def extend(self, generation: Generation, job: Compute) -> None:
        """Have tokens computed that were written to a running generation's node; it goes on after them."""
        self.running.remove(generation)
        self.version += 1
        job.waiting.append(generation)
        self.compute(job)

    # ---------------------------------------------------------------- one step

    def schedule(self) -> Plan:
        """Choose and reserve the next step's work."""
        self._discard_released()
        self._admit()
        copies: list[TailCopy] = []
        burst = self._burst()
        decodes = self._reserve_decodes(copies, burst)
        room = self._config.max_batch_tokens - len(decodes)
        retips = list(self._retips.values())[:room]
        chunks = self._reserve_chunks(room - len(retips), copies, idle_otherwise=not decodes and not retips)
        return Plan(decodes, chunks, retips, copies, burst)

    def computed(self, chunk: Chunk) -> int:
        """Note that a chunk has run; returns how many of its tokens had been computed before."""
        node = chunk.job.node
        again = max(0, min(self._dropped.get(node, 0) - chunk.start, chunk.count))
        if chunk.last:
            del self._computing[node]
            self._dropped.pop(node, None)
            chunk.job.done = True
            self._rest(node, 0.0)
            self._requeue(chunk.job.waiting)
        return again

    def tipped(self, retip: Retip) -> None:
        """Note that a retip has run: those that waited for it may start."""
        del self._retips[retip.node, retip.length]
        for generation in retip.waiting:
            self._start(generation)

    def finished(self, generations: Iterable[Generation]) -> None:
        """Take generations that have ended out of the running batch."""
        for generation in generations:
            self._busy.discard(generation.node)
            self._rest(generation.node, generation.priority)
        self.running = [generation for generation in self.running if not generation.done]
        self.version += 1

    def interrupted(self, generations: Iterable[Generation]) -> None:
        """Put generations whose step has failed back into the queue, since their tips are lost."""
        for generation in generations:
            self.running.remove(generation)
            self._rest(generation.node, generation.priority)
            self.add(generation)
        self.version += 1

    def filled(self, node: Node) -> None:
        """Note that a node has got its KV other than by running."""
        self._rest(node, 0.0)

    def freed(self, node: Node) -> None:
        """Forget a node whose KV is gone."""
        self._idle.pop(node, None)
        if _gone(node):
            self._dropped.pop(node, None)

    # ---------------------------------------------------------------- admission

    def _admit(self) -> None:
        """Take the first that wait, as far as there are pages for what all will soon need.

        Pages of idle nodes count, and are taken when they are needed. Where nothing is under way one is taken anyhow.
        """
        taken = len(self.running) + sum(len(retip.waiting) for retip in self._retips.values())
        candidates = [entry[1] for entry in self._waiting[: max(0, self._config.max_running - taken)]]
        if not candidates:
            return
        promised = sum(map(self._soon_needed, self._admitted()))
        needed = list(accumulate(map(self._soon_needed, candidates), initial=promised))[1:]
        room = self._cache.available_pages
        if room < needed[-1]:
            room += sum(len(node.pages) for node in self._idle_leaves(*candidates))
        admitted = 0
        for generation, pages in zip(candidates, needed, strict=True):
            if (self.running or self._computing or self._retips) and (pages > room or not self._has_spare(candidates)):
                break
            self._advance(generation)
            admitted += 1
        self._waiting = self._waiting[admitted:]

    def _admitted(self) -> Iterator[Generation]:
        """Those that run, or will as soon as KV or a tip is there."""
        yield from self.running
        for job in self._computing.values():
            yield from job.waiting
        for retip in self._retips.values():
            yield from retip.waiting

    def _soon_needed(self, generation: Generation) -> int:
        """Pages that a generation will take next: for its tokens without KV, and for some of those to come."""
        node, left = generation.node, generation.params.max_tokens - generation.produced
        return self._cache.pages_needed(node, len(node.tokens) - node.computed + min(left, _AHEAD_TOKENS))

    def _advance(self, generation: Generation) -> None:
        """Start a generation, or queue what it still lacks."""
        node = generation.node
        pending = self._pending(node)
        if pending:
            self.compute(Compute(pending[0]))
            self._computing[pending[0]].waiting.append(generation)
            return
        generation.tip = find_tip(node)
        if generation.tip >= 0:
            self._start(generation)
            return
        owner = token_owner(node)
        retip = self._retips.setdefault((owner, node.length), Retip(owner, node.length))
        retip.waiting.append(generation)

    def _pending(self, node: Node) -> list[Node]:
        """Nodes whose tokens must be computed before `node` can decode, the topmost first, itself included."""
        pending = self._cache.pending_ancestors(node)
        return [*pending, node] if node.computed < len(node.tokens) else pending

    def _start(self, generation: Generation) -> None:
        """Join the running batch beside the generations of the same tree, whose pages it may share."""
        if generation.probe:
            generation.finish_reason = "stop"
            self._ended.append(generation)
            return
        self._idle.pop(generation.node, None)
        bisect.insort(self.running, generation, key=lambda other: (other.node.tree.id, other.order))
        self.version += 1

    def _has_spare(self, candidates: Sequence[Generation]) -> bool:
        """Keep a page in hand for every sixteenth of the running batch, so that admission does not cause preemption."""
        short = 2 + len(self.running) // _RUNNING_PER_SPARE_PAGE - self._cache.available_pages
        return short <= 0 or self._drop_idle(short, *candidates)

    def _requeue(self, generations: Iterable[Generation]) -> None:
        for generation in generations:
            if not generation.done:
                self.add(generation)

    # ---------------------------------------------------------------- pages

    def _burst(self) -> int:
        """Tokens for every running node to generate in this step: one wherever something else is waiting for it."""
        if self._max_burst == 1 or not self.running or self._computing or self._retips:
            return 1
        burst = min(self._max_burst, *(generation.burst(self._longest_context) for generation in self.running))
        return burst if burst == 1 or self._find_pages(burst) else 1

    def _reserve_decodes(self, copies: list[TailCopy], burst: int) -> list[Generation]:
        """Slots for every running node; those that no page can be found for are preempted or failed."""
        tight = burst == 1 and self._tight(1)  # a longer burst is only planned where its pages are there
        order = sorted(self.running, key=Generation.rank) if tight else list(self.running)
        before = self.version
        for generation in order:
            if self.version != before and generation not in self.running:
                continue  # it was preempted for one of a higher rank
            try:
                copy = self._reserve(generation.node, burst, partial(self._room_for_decode, generation))
            except OutOfPages as error:
                if len(self.running) == 1 and not self._retips:  # nothing is left that could give pages back
                    self._fail(generation, error)
                else:
                    self._preempt(generation)
            else:
                if copy is not None:
                    copies.append(copy)
        return list(self.running)

    def _tight(self, tokens: int) -> bool:
        """Whether some running node may not find its pages: then the order of reservation matters."""
        most = len(self.running) * (-(-tokens // self._config.page_size) + 1)
        return self._cache.available_pages < most and self._cache.available_pages < self._needed(tokens)

    def _find_pages(self, tokens: int) -> bool:
        """Whether all running nodes find their pages, those of idle nodes taken where that is enough."""
        if not self._tight(tokens):
            return True
        short = self._needed(tokens) - self._cache.available_pages
        idle = sum(len(node.pages) for node in self._idle_leaves())
        return idle >= short and self._drop_idle(short) and not self._tight(tokens)

    def _needed(self, tokens: int) -> int:
        return sum(self._cache.pages_needed(generation.node, tokens) for generation in self.running)

    def _reserve_chunks(self, room: int, copies: list[TailCopy], *, idle_otherwise: bool) -> list[Chunk]:
        chunks: list[Chunk] = []
        for job in list(self._computing.values()):
            if room <= 0:
                break
            first = self._pending(job.node)[0]
            if first is not job.node:  # an ancestor was dropped in the meantime
                self.compute(Compute(first))
                continue
            start = job.node.computed
            count = min(room, len(job.node.tokens) - start)
            alone = idle_otherwise and not chunks
            try:
                copy = self._reserve(job.node, count, partial(self._room_for_chunk, job, alone))
            except OutOfPages as error:
                if alone:
                    self._fail(job, error)
                    continue
                break  # running nodes will give their pages back
            if copy is not None:
                copies.append(copy)
            chunks.append(Chunk(job, start, count))
            room -= count
        return chunks

    def _reserve(self, node: Node, count: int, make_room: Callable[[int], bool]) -> TailCopy | None:
        """Slots for `count` more tokens; `make_room` is asked for the missing pages until it frees none."""
        while True:
            try:
                return self._cache.reserve(node, count)
            except OutOfPages as error:
                if not make_room(error.need - error.free):
                    raise

    def _room_for_decode(self, generation: Generation, pages: int) -> bool:
        return self._drop_idle(pages) or self._preempt_below(generation.rank()) or self._drop_other_job(generation.node)

    def _room_for_chunk(self, job: Compute, alone: bool, pages: int) -> bool:
        return self._drop_idle(pages, job) or (alone and self._drop_other_job(job.node))

    def _drop_idle(self, pages: int, *spared: Generation | Compute) -> bool:
        """Drop the KV of idle leaves, the lowest priority and longest unused first, until `pages` are free.

        What `spared` will read stays.
        """
        before = self._cache.available_pages
        for node in self._idle_leaves(*spared):
            if self._cache.available_pages - before >= pages:
                break
            self._drop(node)
        return self._cache.available_pages > before

    def _idle_leaves(self, *spared: Generation | Compute) -> Iterator[Node]:
        """Nodes whose KV nothing under way reads, nor `spared`: those to drop first come first."""
        nodes = [request.node for request in spared]
        needed = self._read_by_others().union(nodes, *map(_ancestors, nodes))
        for node in sorted(self._idle, key=self._idle.__getitem__):
            if node not in needed and not _gone(node) and self._cache.droppable(node):
                yield node

    def _preempt_below(self, rank: tuple[float, int]) -> bool:
        needed = self._read_by_others()
        for generation in sorted(self.running, key=Generation.rank, reverse=True):
            if generation.rank() <= rank:
                return False
            if generation.node not in needed and self._cache.droppable(generation.node):
                self._preempt(generation)
                return True
        return False

    def _read_by_others(self) -> set[Node]:
        """Nodes whose KV this step's work reads although it may own no page yet, so that the cache can't tell."""
        readers = [generation.node for generation in self.running]
        retipped = [generation.node for retip in self._retips.values() for generation in retip.waiting]
        return set(retipped).union(*map(_ancestors, readers + retipped))

    def _preempt(self, generation: Generation) -> None:
        self.running.remove(generation)
        self.version += 1
        self.preemptions += 1
        if generation.node not in self._read_by_others() and self._cache.droppable(generation.node):
            self._drop(generation.node)
        self._rest(generation.node, generation.priority)
        self.add(generation)

    def _drop_other_job(self, node: Node) -> bool:
        """Drop what the latest of the jobs that `node` does not need has computed so far; it starts again."""
        spared = self._read_by_others().union([node], _ancestors(node))
        for job in reversed(self._computing.values()):
            if job.node.pages and job.node not in spared and self._cache.droppable(job.node):
                self._drop(job.node)
                return True
        return False

    def _drop(self, node: Node) -> None:
        self._dropped[node] = max(self._dropped.get(node, 0), node.computed)
        self.dropped_pages += len(node.pages)
        self._cache.drop(node)

    # ---------------------------------------------------------------- ends

    def _discard_released(self) -> None:
        """End what was asked of nodes that have been released since."""
        for generation in [g for g in self._all() if g.node.released]:
            self._fail(generation, Cancelled(f"node {generation.node.id} was released while it was decoding"))
        for job in [job for job in self._computing.values() if _gone(job.node)]:
            if self._computing.get(job.node) is not job:
                continue  # it has failed with one that it continues
            self._fail(job, Cancelled(f"node {job.node.id} was released before it was computed"))

    def _all(self) -> Iterable[Generation]:
        yield from self.running
        yield from (generation for _, generation in self._waiting)
        for job in self._computing.values():
            yield from job.waiting
        for retip in self._retips.values():
            yield from retip.waiting

    def _fail(self, request: Generation | Compute, error: DendriteError) -> None:
        request.error = error
        self._ended.append(request)
        if isinstance(request, Compute):
            del self._computing[request.node]
            request.done = True
            self._rest(request.node, 0.0)
            for generation in request.waiting:
                self._fail(generation, error)
            for job in [j for j in self._computing.values() if request.node in self._cache.pending_ancestors(j.node)]:
                if self._computing.get(job.node) is job:  # else it has failed with one of the others
                    self._fail(job, error)  # what continues KV that cannot be computed cannot be computed either
        else:
            request.finish_reason = "cancelled" if isinstance(error, Cancelled) else "error"
            self._forget(request)

    def _forget(self, generation: Generation) -> None:
        if generation in self.running:
            self.running.remove(generation)
            self.version += 1
        self._waiting = [entry for entry in self._waiting if entry[1] is not generation]
        for job in self._computing.values():
            if generation in job.waiting:
                job.waiting.remove(generation)
        for key, retip in list(self._retips.items()):
            if generation in retip.waiting:
                retip.waiting.remove(generation)
                if not retip.waiting:
                    del self._retips[key]
        if not generation.probe:
            self._busy.discard(generation.node)
            self._rest(generation.node, generation.priority)

    def _rest(self, node: Node, priority: float) -> None:
        """Let the KV of a node be dropped when pages run out, unless something still works on it."""
        if node.computed and node not in self._computing and not _gone(node):
            self._idle[node] = priority


def _ancestors(node: Node) -> Iterator[Node]:
    above = node.parent
    while above is not None:
        yield above
        above = above.parent


def _gone(node: Node) -> bool:
    """Whether nobody can ask for the node any more; the prefix cache may still keep its KV."""
    return node.released and node.child_count == 0

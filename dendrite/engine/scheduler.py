"""What runs in the next step: which nodes decode, which given tokens are computed, and who gives up pages for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

from dendrite.config import EngineConfig
from dendrite.engine.footprint import Footprint
from dendrite.engine.generation import Compute, Generation
from dendrite.engine.paths import ancestors, find_tip, token_owner
from dendrite.engine.plan import Chunk, Plan, Retip
from dendrite.engine.requests import Requests
from dendrite.errors import OutOfPages
from dendrite.kv.ancestry import droppable, pending_ancestors
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from dendrite.kv.pages import TailCopy


class Scheduler:
    """Continuous batching over nodes, by rank: priority first, arrival second.

    Decoding nodes come first in a step, then prefill chunks fill what is left of `max_batch_tokens`. When pages run
    out, idle leaves lose their KV before running nodes do, and the lowest rank before a higher one; nothing but KV is
    lost.
    """

    def __init__(
        self, cache: KvCache, requests: Requests, config: EngineConfig, longest_context: int, max_burst: int = 1
    ) -> None:
        """Plan for one engine.

        Args:
            cache: whose pages are reserved.
            requests: what there is to do.
            config: the limits of a step.
            longest_context: tokens at which a generation must end.
            max_burst: most tokens that a node may generate in one step.
        """
        self._cache = cache
        self._requests = requests
        self._config = config
        self._longest_context = longest_context
        self._max_burst = max_burst
        self.preemptions = 0

    def schedule(self) -> Plan:
        """Choose and reserve the next step's work."""
        requests = self._requests
        requests.discard_released()
        self._admit()
        copies: list[TailCopy] = []
        burst = self._burst()
        decodes = self._reserve_decodes(copies, burst)
        room = self._config.max_batch_tokens - len(decodes)
        retips = list(requests.retips.values())[:room]
        chunks = self._reserve_chunks(room - len(retips), copies, idle_otherwise=not decodes and not retips)
        return Plan(decodes, chunks, retips, copies, burst)

    # ---------------------------------------------------------------- admission

    def _admit(self) -> None:
        """Take the first that wait, as far as there are pages for all that those under way read and will soon write.

        Pages of idle nodes count, and are taken when they are needed. Those of nodes that wait count for the first
        alone: the others would take them back. Where nothing is under way one is taken anyhow.

        What has been taken keeps its place until it ends or is preempted: if it had to be taken again after each of its
        segments, several that don't fit together could drop each other's KV for ever.
        """
        requests = self._requests
        for generation in requests.take_ready():
            self._advance(generation)
        taken = len(requests.running) + sum(1 for _ in requests.blocked())
        candidates = [entry[1] for entry in requests.waiting[: max(0, self._config.max_running - taken)]]
        if not candidates:
            return
        footprint = self._under_way()
        if taken:
            footprint.keep(other.node for other in candidates)
        admitted = 0
        for generation in candidates:
            footprint.add_generation(generation)
            if footprint.pages > self._cache.pool.num_pages - 1 and (taken or requests.computing):
                break
            if not taken:
                footprint.keep(other.node for other in candidates)
            self._advance(generation)
            taken += 1
            admitted += 1
        requests.waiting = requests.waiting[admitted:]

    def _under_way(self) -> Footprint:
        """Pages of all that has been taken and has not ended."""
        footprint = Footprint(self._cache)
        for generation in chain(self._requests.running, self._requests.blocked()):
            footprint.add_generation(generation)
        for node in self._requests.computing:
            footprint.add(node)
        return footprint

    def _advance(self, generation: Generation) -> None:
        """Start a generation, or queue what it still lacks: the last segment, before which the others are computed."""
        node = generation.node
        pending = self._pending(node)
        if pending:
            self._requests.compute(Compute(pending[-1]))
            self._requests.computing[pending[-1]].waiting.append(generation)
            return
        generation.tip = find_tip(node)
        if generation.tip >= 0:
            self._requests.start(generation)
            return
        owner = token_owner(node)
        retip = self._requests.retips.setdefault((owner, node.length), Retip(owner, node.length))
        retip.waiting.append(generation)

    def _pending(self, node: Node) -> list[Node]:
        """Nodes whose tokens must be computed before `node` can decode, the topmost first, itself included."""
        pending = pending_ancestors(node)
        return [*pending, node] if node.computed < len(node.tokens) else pending

    # ---------------------------------------------------------------- pages

    def _burst(self) -> int:
        """Tokens for every running node to generate in this step: one wherever something else is waiting for it."""
        requests = self._requests
        if self._max_burst == 1 or not requests.running or requests.computing or requests.retips:
            return 1
        burst = min(self._max_burst, *(generation.burst(self._longest_context) for generation in requests.running))
        return burst if burst == 1 or self._find_pages(burst) else 1

    def _reserve_decodes(self, copies: list[TailCopy], burst: int) -> list[Generation]:
        """Slots for every running node; those that no page can be found for are preempted or failed."""
        requests = self._requests
        tight = burst == 1 and self._tight(1)  # a longer burst is only planned where its pages are there
        order = sorted(requests.running, key=Generation.rank) if tight else list(requests.running)
        before = requests.version
        for generation in order:
            if requests.version != before and generation not in requests.running:
                continue  # it was preempted for one of a higher rank
            try:
                copy = self._reserve(generation.node, burst, partial(self._room_for_decode, generation))
            except OutOfPages as error:
                if len(requests.running) == 1 and not requests.retips:  # nothing is left that could give pages back
                    requests.fail(generation, error)
                else:
                    self._preempt(generation)
            else:
                if copy is not None:
                    copies.append(copy)
        return list(requests.running)

    def _tight(self, tokens: int) -> bool:
        """Whether some running node may not find its pages: then the order of reservation matters."""
        most = len(self._requests.running) * (-(-tokens // self._config.page_size) + 1)
        return self._cache.available_pages < most and self._cache.available_pages < self._needed(tokens)

    def _find_pages(self, tokens: int) -> bool:
        """Whether all running nodes find their pages, those of idle nodes taken where that is enough."""
        if not self._tight(tokens):
            return True
        short = self._needed(tokens) - self._cache.available_pages
        idle = sum(len(node.pages) for node in self._idle_leaves())
        return idle >= short and self._drop_idle(short) and not self._tight(tokens)

    def _needed(self, tokens: int) -> int:
        return sum(self._cache.pages_needed(generation.node, tokens) for generation in self._requests.running)

    def _reserve_chunks(self, room: int, copies: list[TailCopy], *, idle_otherwise: bool) -> list[Chunk]:
        """Given tokens to compute, as many as there is room for.

        What a job's node continues is computed in the job's place, so that the first of them is done before those after
        it can take its pages.
        """
        requests = self._requests
        chunks: list[Chunk] = []
        seen: set[Node] = set()
        for job in list(requests.computing.values()):
            if room <= 0:
                break
            if requests.computing.get(job.node) is not job:
                continue  # it has failed with what it continues
            first = self._pending(job.node)[0]
            requests.compute(Compute(first))  # unless it is there
            if first in seen:
                continue
            seen.add(first)
            start = first.computed
            count = min(room, len(first.tokens) - start)
            alone = idle_otherwise and not chunks
            try:
                copy = self._reserve(first, count, partial(self._room_for_chunk, job, alone))
            except OutOfPages as error:
                if alone:
                    requests.fail(requests.computing[first], error)
                    continue
                break  # running nodes will give their pages back
            if copy is not None:
                copies.append(copy)
            chunks.append(Chunk(requests.computing[first], start, count))
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
        return self._drop_idle(pages) or (alone and self._drop_other_job(job.node))

    def _drop_idle(self, pages: int) -> bool:
        """Drop the KV of idle leaves until `pages` are free; see `_idle_leaves`."""
        before = self._cache.available_pages
        for node in self._idle_leaves():
            if self._cache.available_pages - before >= pages:
                break
            self._requests.idle.drop(node)
        return self._cache.available_pages > before

    def _idle_leaves(self) -> Iterator[Node]:
        """Nodes whose KV nothing under way reads: those to drop first come first, those that wait for it last."""
        read = self._read_by_others()
        waiting = [generation.node for _, generation in self._requests.waiting[: self._config.max_running]]
        yield from self._requests.idle.leaves(read.union(waiting, *map(ancestors, waiting)))
        if waiting:
            yield from self._requests.idle.leaves(read)

    def _preempt_below(self, rank: tuple[float, int]) -> bool:
        needed = self._read_by_others()
        for generation in sorted(self._requests.running, key=Generation.rank, reverse=True):
            if generation.rank() <= rank:
                return False
            if generation.node not in needed and droppable(generation.node):
                self._preempt(generation)
                return True
        return False

    def _read_by_others(self) -> set[Node]:
        """Nodes whose KV what is under way reads although it may own no page yet, so that the cache can't tell."""
        blocked = [generation.node for generation in self._requests.blocked()]
        return self._read_by_running().union(blocked, *map(ancestors, blocked), *map(_path, self._requests.computing))

    def _read_by_running(self) -> set[Node]:
        """The part of `_read_by_others` that no job for given tokens may take."""
        readers = [generation.node for generation in self._requests.running]
        retipped = [generation.node for retip in self._requests.retips.values() for generation in retip.waiting]
        return set(retipped).union(*map(ancestors, readers + retipped))

    def _preempt(self, generation: Generation) -> None:
        self.preemptions += 1
        if generation.node not in self._read_by_others() and droppable(generation.node):
            self._requests.idle.drop(generation.node)
        self._requests.interrupted([generation])

    def _drop_other_job(self, node: Node) -> bool:
        """Drop KV that only jobs after `node`'s read, the latest job's first; they compute it again.

        Where `node` has no job, all jobs count as after it.
        """
        spared = self._read_by_running().union(_path(node))
        later: list[Node] = []
        for other in self._requests.computing:
            if other is node:
                spared.update(*map(_path, later))
                later = []
            else:
                later.append(other)
        for other in reversed(later):
            for victim in _path(other):
                if victim.pages and victim not in spared and droppable(victim):
                    self._requests.idle.drop(victim)
                    return True
        return False


def _path(node: Node) -> Iterator[Node]:
    """A node and all above it, the nearest first."""
    yield node
    yield from ancestors(node)

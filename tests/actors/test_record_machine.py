"""The manager's record against a plain model, whatever happens to messages, workers and the manager itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.deltas import Added, Batch, EventLog, Released
from actors.outbox import Courier, Receipt
from actors.refs import lease_of, unique_id
from actors.tree_shard import TreeShard
from dendrite.errors import StaleEpoch, UnknownNode

WORKERS = 2
Name = tuple[int, int]


@dataclass
class Worker:
    """What a worker truly holds, and its end of the line to the manager."""

    courier: Courier
    epoch: int = 0
    log: EventLog = field(default_factory=EventLog)
    paths: dict[Name, tuple[int, ...]] = field(default_factory=dict)
    parents: dict[Name, int | None] = field(default_factory=dict)
    bases: dict[Name, int] = field(default_factory=dict)
    held: set[Name] = field(default_factory=set)

    @property
    def kept(self) -> set[Name]:
        """Held nodes, and all that they descend from."""
        found = set()
        for tree, name in self.held:
            node: int | None = name
            while node is not None and (tree, node) not in found:
                found.add((tree, node))
                node = self.parents[tree, node]
        return found

    def release(self, name: Name) -> None:
        if name in self.held:
            self.held.remove(name)
            self.log.add(Released(*name))


class RecordMachine(RuleBasedStateMachine):
    """Workers make and release nodes; messages are delivered, lost, repeated and held up; processes restart."""

    nodes = Bundle("nodes")
    indices = st.integers(0, WORKERS - 1)
    fates = st.sampled_from(["wait", "pack", "arrive", "arrive"])  # how far what has happened gets at once

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.shard = TreeShard(0)
        self.next_node = 0
        self.waiting: list[tuple[Batch, asyncio.Future[Receipt]]] = []
        self.passed: list[Batch] = []
        self.taken: list[Batch] = []  # by this incarnation of the manager
        self.workers = [Worker(self.courier(index, 0)) for index in range(WORKERS)]

    def courier(self, index: int, epoch: int) -> Courier:
        return Courier(index, epoch, self.send)

    async def send(self, batch: Batch) -> Receipt:
        answer: asyncio.Future[Receipt] = self.loop.create_future()
        self.waiting.append((batch, answer))
        return await answer

    def turn(self) -> None:
        """Let all tasks run until they wait."""

        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    # ------------------------------------------------------------ workers

    @rule(
        target=nodes, worker=st.integers(0, WORKERS - 1), lease=st.integers(1, 3), tokens=st.integers(1, 4), fate=fates
    )
    def prefill(self, worker: int, lease: int, tokens: int, fate: str) -> tuple[int, Name]:
        self.next_node += 1
        name = (unique_id(lease, self.next_node), 0)
        self.make(worker, name, None, 0, (self.next_node,) * tokens)
        self.meet(fate, worker)
        return worker, name

    @rule(target=nodes, above=nodes, cut=st.integers(0, 3), tokens=st.integers(0, 3), fate=fates)
    def grow(self, above: tuple[int, Name], cut: int, tokens: int, fate: str) -> tuple[int, Name]:
        worker, (tree, parent) = above
        holder = self.workers[worker]
        self.next_node += 1
        name, span = (tree, self.next_node), (self.next_node,) * tokens
        if (tree, parent) in holder.held:
            own = len(holder.paths[tree, parent]) - holder.bases[tree, parent]
            self.make(worker, name, parent, len(holder.paths[tree, parent]) - min(cut, own), span)
        else:
            self.make(worker, name, None, 0, span)
        self.meet(fate, worker)
        return worker, name

    @rule(target=nodes, at=nodes)
    def replicate(self, at: tuple[int, Name]) -> tuple[int, Name]:
        """Another worker gets a copy of a held node, by its whole path."""
        worker, name = at
        other = (worker + 1) % WORKERS
        if name in self.workers[worker].held and name not in self.workers[other].paths:
            self.make(other, name, None, 0, self.workers[worker].paths[name])
        return other, name

    def make(self, worker: int, name: Name, parent: int | None, base: int, span: tuple[int, ...]) -> None:
        holder = self.workers[worker]
        above = holder.paths[name[0], parent][:base] if parent is not None else ()
        holder.paths[name], holder.parents[name], holder.bases[name] = above + span, parent, base
        holder.held.add(name)
        holder.log.add(Added(*name, parent, base, span))

    @rule(at=nodes, fate=fates)
    def release(self, at: tuple[int, Name], fate: str) -> None:
        self.workers[at[0]].release(at[1])
        self.meet(fate, at[0])

    def meet(self, fate: str, worker: int) -> None:
        if fate != "wait":
            self.pack(worker)
        while fate == "arrive" and self.waiting:
            self.deliver(0, lost=False)

    @rule(lease=st.integers(1, 3))
    def end_lease(self, lease: int) -> None:
        for worker in self.workers:
            for name in sorted(worker.held):
                if lease_of(name[0]) == lease:
                    worker.release(name)

    @rule(worker=indices)
    def pack(self, worker: int) -> None:
        """What has happened since is packed; an empty pack is a heartbeat."""

        async def put() -> None:
            self.workers[worker].courier.put(self.workers[worker].log.pack())

        self.loop.run_until_complete(put())
        self.turn()

    @rule(worker=indices)
    def restart_worker(self, worker: int) -> None:
        epoch = self.workers[worker].epoch + 1
        self.workers[worker] = Worker(self.courier(worker, epoch), epoch)

    # ------------------------------------------------------------ the line, and the manager

    @precondition(lambda self: self.waiting)
    @rule(pick=st.integers(0, 10), lost=st.booleans())
    def deliver(self, pick: int, lost: bool) -> None:
        batch, answer = self.waiting.pop(pick % len(self.waiting))
        self.passed.append(batch)
        self.take(batch, answer, lost)
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule(pick=st.integers(0, 10))
    def lose(self, pick: int) -> None:
        batch, answer = self.waiting.pop(pick % len(self.waiting))
        self.passed.append(batch)  # it may still come
        answer.set_exception(ConnectionError("lost"))
        self.turn()

    def take(self, batch: Batch, answer: asyncio.Future[Receipt], lost: bool) -> None:
        try:
            receipt = self.loop.run_until_complete(self.shard.apply(batch))
        except StaleEpoch as error:
            answer.set_exception(error)
        else:
            self.taken.append(batch)
            if lost:
                answer.set_exception(ConnectionError("the answer was lost"))
            else:
                answer.set_result(receipt)

    @precondition(lambda self: self.passed)
    @rule(back=st.integers(1, 6))
    def repeat(self, back: int) -> None:
        """An old message comes, perhaps again. Nobody waits for the answer."""
        batch, topology = self.passed[-min(back, len(self.passed))], self.shard._topology
        before = [topology.trees, topology.records, *map(topology.live_nodes, range(WORKERS))]
        answer: asyncio.Future[Receipt] = self.loop.create_future()
        over = (
            any(batch is taken for taken in self.taken)
            or any(batch.worker == taken.worker and batch.epoch < taken.epoch for taken in self.taken)
            or batch.shard_epoch not in (None, self.shard._epoch)
        )
        self.take(batch, answer, lost=False)
        answer.exception()  # seen
        if over:
            assert before == [topology.trees, topology.records, *map(topology.live_nodes, range(WORKERS))]

    @rule()
    def restart_manager(self) -> None:
        self.shard = TreeShard(self.shard._epoch + 1)
        self.taken.clear()

    @rule(worker=indices)
    def take_for_dead(self, worker: int) -> None:
        """The manager believes that a worker is dead, which may be wrong."""
        self.loop.run_until_complete(self.shard.forget(worker))
        self.taken = [batch for batch in self.taken if batch.worker != worker]

    # ------------------------------------------------------------ what has to hold

    @rule()
    def settle(self) -> None:
        """With no more mishaps, two heartbeats of each worker are enough for the record to be what is so."""
        for _ in range(2):
            for worker in range(WORKERS):
                self.pack(worker)
            while self.waiting:
                self.deliver(0, lost=False)
        self.compare()

    def compare(self) -> None:
        topology = self.shard._topology
        trees: set[int] = set()
        for index, worker in enumerate(self.workers):
            assert topology.live_nodes(index) == len(worker.held)
            trees.update(tree for tree, _ in worker.held)
            for name in worker.paths:
                assert (index in topology.holders(*name)) == (name in worker.kept)
        assert topology.trees == len(trees)
        assert topology.records == sum(len(worker.kept) for worker in self.workers)
        for tree, node in {name for worker in self.workers for name in worker.paths}:
            [*paths] = {worker.paths[tree, node] for worker in self.workers if (tree, node) in worker.kept}
            if paths:
                assert topology.path_tokens(tree, node) in paths
            else:
                with pytest.raises(UnknownNode):
                    topology.path_tokens(tree, node)

    @invariant()
    def workers_records_are_their_own(self) -> None:
        for worker in getattr(self, "workers", ()):
            if not worker.log.events:
                assert worker.courier.held.live == len(worker.held)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for lease in (1, 2, 3):
                self.end_lease(lease)
            self.settle()
            assert self.shard._topology.records == 0
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


TestRecordMachine = RecordMachine.TestCase
TestRecordMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)

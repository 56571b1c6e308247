"""Which worker a new tree goes to, and which workers have to be told when a lease ends."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from actors.deltas import Load, Status
from actors.refs import lease_of
from actors.rpc import Handle


@dataclass(slots=True)
class _Worker:
    handle: Handle = None
    load: Load = Load(0, 0)  # noqa: RUF009  # a named tuple can't change
    heard: float = 0.0
    draining: bool = False
    trees: set[int] = field(default_factory=set)
    chosen: int = 0


class PlacementBook:
    """What the workers last said of themselves, and the trees that are to come to them.

    Times are seconds of any one monotonic clock, given by the caller.
    """

    def __init__(self, silent_after_s: float) -> None:
        """Make an empty book; a worker that has not been heard of for `silent_after_s` is passed over if it can be."""
        self._silent_after_s = silent_after_s
        self._workers: dict[int, _Worker] = {}
        self._chosen: dict[int, int] = {}
        self._reached: defaultdict[int, set[int]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._workers)

    def load(self, worker: int) -> Load:
        """What a worker last measured."""
        return self._workers[worker].load if worker in self._workers else Load(0, 0)

    def handle(self, worker: int) -> Handle:
        """The actor of a worker that has introduced itself."""
        return self._workers[worker].handle

    def introduce(self, worker: int, handle: Handle) -> None:
        """A worker has reported, be it for the first time or as a new incarnation."""
        found = self._workers.setdefault(worker, _Worker())
        found.handle = handle
        found.trees.clear()

    def hear(self, worker: int, status: Status, now: float) -> None:
        """Note what a worker says of itself."""
        found = self._workers[worker]
        found.load, found.draining, found.heard = status.load, status.draining, now
        for tree in status.begun.tolist():
            found.trees.add(tree)
            self._reached[lease_of(tree)].add(worker)
            self.unplace(tree)
        for tree in status.ended.tolist():
            found.trees.discard(tree)
            self.unplace(tree)

    def forget(self, worker: int) -> None:
        """A worker has died with all that it held."""
        found = self._workers.get(worker)
        if found is None:
            return
        found.trees.clear()
        found.load, found.heard = Load(0, 0), -math.inf

    def remove(self, worker: int) -> None:
        """A worker is gone for good: nothing comes to it any more."""
        for tree in [tree for tree, chosen in self._chosen.items() if chosen == worker]:
            self.unplace(tree)
        for reached in self._reached.values():
            reached.discard(worker)
        self._workers.pop(worker, None)

    def __contains__(self, worker: int) -> bool:
        return worker in self._workers

    def place(self, tree: int, now: float) -> int:
        """Choose the worker for a new tree: of those that work, the one with the fewest trees, then the fewest pages.

        A tree that is placed again stays where it was. There has to be a worker.
        """
        if tree in self._chosen:
            return self._chosen[tree]

        def rank(worker: int) -> tuple[bool, bool, int, int, int]:
            found = self._workers[worker]
            silent = now - found.heard > self._silent_after_s
            return found.draining, silent, len(found.trees) + found.chosen, found.load.pages_held, worker

        worker = min(self._workers, key=rank)
        self._chosen[tree] = worker
        self._workers[worker].chosen += 1
        self._reached[lease_of(tree)].add(worker)
        return worker

    def unplace(self, tree: int) -> None:
        """Take back a placement: nothing came of it, or the worker itself has told of the tree."""
        worker = self._chosen.pop(tree, None)
        if worker is not None:
            self._workers[worker].chosen -= 1

    def end(self, lease: int) -> list[int]:
        """Forget a lease's placements. Returns the workers on which something may be held under it."""
        for tree in [tree for tree in self._chosen if lease_of(tree) == lease]:
            self.unplace(tree)
        return sorted(self._reached.pop(lease, ()))

"""Which nodes live where, and the tokens that would rebuild each of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from actors.deltas import GROUP, NO_EVENTS, Pack
from actors.tree_copy import Share, TreeCopy
from dendrite.errors import UnknownNode

SETTLE_AFTER = 64
"""Packs: an older one is not kept in memory for the sake of a tree that nobody has asked for."""


class Changes(NamedTuple):
    """Trees of which a pack brought the first held node, and those of which it took the last."""

    begun: list[int]
    ended: list[int]


class HeldTrees:
    """The trees of one worker. The worker and the manager keep the same record, from the same packs."""

    def __init__(self) -> None:
        self._copies: dict[int, TreeCopy] = {}
        self._unsettled: dict[int, int] = {}  # tree to the number of its oldest pack, oldest first
        self._packs = 0
        self.live = 0
        """Held nodes."""

    def __contains__(self, tree: int) -> bool:
        return tree in self._copies

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def trees(self) -> list[int]:
        """Trees of which a node is held."""
        return list(self._copies)

    @property
    def records(self) -> int:
        """Nodes on record, held or lineage only."""
        return sum(copy.records for copy in self._copies.values())

    def copy(self, tree: int) -> TreeCopy | None:
        """What is held of a tree, None if nothing is."""
        return self._copies.get(tree)

    def apply(self, pack: Pack) -> Changes:
        """Record a pack's events."""
        changes = Changes([], [])
        added, released = pack.added["node"].tolist(), pack.released.tolist()
        a = r = t = 0
        for tree, adds, releases, tokens in pack.groups.tolist():
            share = Share(pack, slice(a, a + adds), slice(r, r + releases), slice(t, t + tokens))
            self._apply(tree, share, added[a : a + adds], released[r : r + releases], changes)
            a, r, t = a + adds, r + releases, t + tokens
        self._packs += 1
        self._settle_old()
        return changes

    def export(self) -> Pack:
        """Everything, as one pack that makes the same record of an empty one."""
        if not self._copies:
            return NO_EVENTS
        parts = {tree: copy.export() for tree, copy in self._copies.items()}
        groups = [(tree, *(len(column) for column in part)) for tree, part in parts.items()]
        added, released, tokens = zip(*parts.values(), strict=True)
        return Pack(np.array(groups, GROUP), np.concatenate(added), np.concatenate(released), np.concatenate(tokens))

    def _apply(self, tree: int, share: Share, added: list[int], released: list[int], changes: Changes) -> None:
        copy = self._copies.get(tree)
        known = copy is not None
        if copy is None:
            if not added:
                return  # released before
            copy = self._copies[tree] = TreeCopy()
        before = len(copy.held)
        copy.apply(share, added, released)
        self.live += len(copy.held) - before
        if not copy.held:
            del self._copies[tree]
            self._unsettled.pop(tree, None)
            changes.ended.append(tree)
            return
        self._unsettled.setdefault(tree, self._packs)
        if not known:
            changes.begun.append(tree)

    def _settle_old(self) -> None:
        while self._unsettled:
            tree, pack = next(iter(self._unsettled.items()))
            if pack > self._packs - SETTLE_AFTER:
                return
            del self._unsettled[tree]
            self._copies[tree].settle()


class Topology:
    """Every node that a worker holds, and every released one that a held node descends from there.

    A tree may have copies on several workers. Each copy keeps a released ancestor as long as a node below it is held on
    the same worker.
    """

    def __init__(self) -> None:
        self._workers: dict[int, HeldTrees] = {}
        self._owners: dict[int, list[int]] = {}

    @property
    def trees(self) -> int:
        """Trees with at least one held node."""
        return len(self._owners)

    @property
    def records(self) -> int:
        """Nodes on record, held or lineage only, once for each worker that has them."""
        return sum(held.records for held in self._workers.values())

    def live_nodes(self, worker: int) -> int:
        """Nodes that a worker holds and nobody has released."""
        held = self._workers.get(worker)
        return held.live if held else 0

    def owners(self, tree: int) -> tuple[int, ...]:
        """The workers that hold nodes of a tree, in ascending order."""
        return tuple(sorted(self._owners.get(tree, ())))

    def holders(self, tree: int, node: int) -> tuple[int, ...]:
        """The workers that have a copy of a node, in ascending order: held, or for the sake of a held descendant."""
        return tuple(worker for worker, copy in self._copies(tree) if node in copy)

    def path_tokens(self, tree: int, node: int) -> tuple[int, ...]:
        """The tokens from the root to the end of a node: its lineage. A prefill of them rebuilds it.

        Raises:
            UnknownNode: the node is neither held nor an ancestor of a held one.
        """
        for _, copy in self._copies(tree):
            tokens = copy.path_tokens(node)
            if tokens is not None:
                return tokens
        raise UnknownNode(tree, node)

    def apply(self, worker: int, pack: Pack) -> Changes:
        """Record what a worker did."""
        held = self._workers.get(worker)
        if held is None:
            held = self._workers[worker] = HeldTrees()
        changes = held.apply(pack)
        for tree in changes.begun:
            self._owners.setdefault(tree, []).append(worker)
        for tree in changes.ended:
            self._disown(tree, worker)
        return changes

    def replace(self, worker: int, pack: Pack) -> None:
        """Forget what was known of a worker, for its report of all that it holds."""
        self.drop_worker(worker)
        self.apply(worker, pack)

    def drop_worker(self, worker: int) -> None:
        """Forget all that a worker held."""
        held = self._workers.pop(worker, None)
        for tree in held.trees if held else ():
            self._disown(tree, worker)

    def _disown(self, tree: int, worker: int) -> None:
        owners = self._owners.get(tree, [])
        if worker in owners:  # not if the tree began and ended with one pack
            owners.remove(worker)
            if not owners:
                del self._owners[tree]

    def _copies(self, tree: int) -> list[tuple[int, TreeCopy]]:
        copies = []
        for worker in self.owners(tree):
            copy = self._workers[worker].copy(tree)
            if copy is not None:
                copies.append((worker, copy))
        return copies

"""What a worker tells the tree manager: packed arrays, without a Python object for each event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_PARENT = -1
"""The parent of a node whose tokens are its whole path."""

GROUP = np.dtype([("tree", "<i8"), ("added", "<i4"), ("released", "<i4"), ("tokens", "<i4")])
"""A tree's share of a pack: its id, and how many of the pack's added nodes, released nodes and tokens are its."""
ADDED = np.dtype([("node", "<i4"), ("parent", "<i4"), ("base", "<i4"), ("length", "<i4")])
"""A node that is now held: it continues the first `base` tokens of its parent's path with `length` tokens."""


class Added(NamedTuple):
    """A node is now held.

    It continues the first `base` tokens of its parent's path with `tokens`. `parent` is None where `tokens` is
    the whole path: for a root, and for a child whose parent was released before the child was done.
    """

    tree: int
    node: int
    parent: int | None
    base: int
    tokens: tuple[int, ...]


class Released(NamedTuple):
    """The holder has given up a node. Its tokens are still lineage while it has children."""

    tree: int
    node: int


class Replica(NamedTuple):
    """A node that has the tokens of a node of another tree, the original, which lies or lay on another worker."""

    tree: int
    node: int
    original_tree: int
    original: int


class Load(NamedTuple):
    """What a worker holds: nodes that nobody has released, and the KV pages that they own."""

    live_nodes: int
    pages_held: int


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Events, grouped by tree: the worker sorts them, of which there are many, for the manager, of which there is one.

    Within a tree all additions come before all releases. That is the order in which they happened as far as it matters:
    an id is given to one node of a tree only, so a node is never added again after its release.
    """

    groups: NDArray[np.void]
    """One `GROUP` a tree; its share of the other arrays follows that of the group before."""
    added: NDArray[np.void]
    """`ADDED` each."""
    released: NDArray[np.int32]
    """Node ids."""
    tokens: NDArray[np.int32]
    """The tokens of `added`, one node's after the other's."""

    @property
    def events(self) -> int:
        """Nodes added and released."""
        return len(self.added) + len(self.released)


NO_EVENTS = Pack(np.zeros(0, GROUP), np.zeros(0, ADDED), np.zeros(0, np.int32), np.zeros(0, np.int32))


class _Share:
    """One tree's events, as columns of a pack."""

    __slots__ = ("added", "released", "tokens")

    def __init__(self) -> None:
        self.added: list[tuple[int, int, int, int]] = []
        self.released: list[int] = []
        self.tokens: list[int] = []


class EventLog:
    """Gathers events until they are packed."""

    def __init__(self) -> None:
        self._shares: dict[int, _Share] = {}
        self.events = 0
        """Events since the last `pack`."""

    def add(self, event: Added | Released) -> None:
        """Note an event that follows all that were noted before."""
        share = self._shares.get(event.tree)
        if share is None:
            share = self._shares[event.tree] = _Share()
        if isinstance(event, Added):
            parent = NO_PARENT if event.parent is None else event.parent
            share.added.append((event.node, parent, event.base, len(event.tokens)))
            share.tokens.extend(event.tokens)
        else:
            share.released.append(event.node)
        self.events += 1

    def pack(self) -> Pack:
        """Take all events out, as arrays."""
        shares, self._shares, self.events = self._shares, {}, 0
        if not shares:
            return NO_EVENTS
        groups = [(tree, len(share.added), len(share.released), len(share.tokens)) for tree, share in shares.items()]
        return Pack(
            np.array(groups, GROUP),
            np.array([row for share in shares.values() for row in share.added], ADDED),
            np.array([node for share in shares.values() for node in share.released], np.int32),
            np.array([token for share in shares.values() for token in share.tokens], np.int32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Status:
    """What the manager's first shard hears of a worker besides its nodes.

    `begun` and `ended` are trees of which the worker holds a first node and no node any more, since it last said so; in
    a report, `begun` are all trees of which it holds nodes. `expired` are the leases whose end it was told of.
    `replicas` are new ones too, and in a report all.
    """

    load: Load
    draining: bool
    begun: NDArray[np.int64]
    ended: NDArray[np.int64]
    expired: NDArray[np.int64]
    replicas: tuple[Replica, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One message of a worker to a shard of the manager.

    Attributes:
        worker: the worker's index.
        epoch: the worker's incarnation.
        shard_epoch: the shard's incarnation, as far as the worker knows; None in a report, which introduces it.
        number: how many messages of this incarnation to this shard came before.
        packs: events in order; in a report one pack, of all that the worker holds and of what that descends from.
        status: None for shards that need none.
    """

    worker: int
    epoch: int
    shard_epoch: int | None
    number: int
    packs: tuple[Pack, ...]
    status: Status | None

"""Names that mean the same thing in every process of a cluster: leases, trees, nodes and calls."""

from __future__ import annotations

from typing import NamedTuple

IDS_PER_LEASE = 2**32
"""The holder of a lease numbers its own trees and calls up to this, so that every id is unique and names its lease."""


class ClusterNode(NamedTuple):
    """A node as the cluster names it: the worker that holds its KV, its tree, and its id within the tree."""

    worker: int
    tree: int
    node: int


class Given(NamedTuple):
    """A node that its holder gives up, with `subtree` all below it too."""

    tree: int
    node: int
    subtree: bool = False


def worker_name(worker: int) -> str:
    """A worker in words."""
    return f"worker {worker}"


def unique_id(lease: int, count: int) -> int:
    """Make the id of a tree, or of a call, from the number that the lease's holder gives it."""
    return lease * IDS_PER_LEASE + count


def lease_of(tree_or_call: int) -> int:
    """The lease that an id was made under."""
    return tree_or_call // IDS_PER_LEASE


def shard_of(tree: int, shards: int) -> int:
    """The shard of the tree manager that keeps a tree's record.

    Multiplying by 2^64 divided by the golden ratio spreads the ids of one lease, which are near one another, and the
    first ids of all leases, which are multiples of a power of two (Knuth, The Art of Computer Programming, 6.4).
    """
    return ((tree * 0x9E37_79B9_7F4A_7C15 & 0xFFFF_FFFF_FFFF_FFFF) >> 32) % shards

"""Names that mean the same thing in every process of a cluster: leases, trees and nodes."""

from __future__ import annotations

from dataclasses import dataclass

TREES_PER_LEASE = 2**32
"""A lease numbers its own trees from 0 up to this: a tree's id is unique in the cluster and names its lease."""


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node as the cluster names it: the worker that holds its KV, its tree, and its id within the tree."""

    worker: int
    tree: int
    node: int


def tree_id(lease: int, count: int) -> int:
    """The id of the tree number `count` of a lease."""
    return lease * TREES_PER_LEASE + count


def lease_of(tree: int) -> int:
    """The lease that holds a tree."""
    return tree // TREES_PER_LEASE

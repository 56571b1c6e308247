"""Dendrite on a Ray cluster: `connect` makes one, `Cluster` uses it like one engine."""

from actors.cluster import Cluster, connect

__all__ = ["Cluster", "connect"]

"""Dendrite on a Ray cluster: `connect` makes one, `Cluster` uses it like one engine."""

from actors.cluster import Cluster, connect
from actors.reward_model import RewardModel, RewardValues

__all__ = ["Cluster", "RewardModel", "RewardValues", "connect"]

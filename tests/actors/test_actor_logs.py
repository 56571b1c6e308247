"""Actors log as the process that started them was told to."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import ray

import actors


def formatter(actor: object) -> str | None:
    """The class of what writes this process's log."""
    handlers = logging.getLogger("dendrite").handlers
    return type(handlers[0].formatter).__name__ if handlers else None


def test_actors_are_told_by_their_environment(
    ray_here: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENDRITE_LOG_FORMAT", "json")
    with actors.connect(tiny_model, workers=1, cpus_per_worker=1, kv_tokens=16_384) as cluster:
        found = [cluster.actors.manager, *cluster.actors.workers, *cluster.actors.drivers]
        told = ray.get([actor.__ray_call__.remote(formatter) for actor in found])
    assert told == ["JsonFormatter"] * 3

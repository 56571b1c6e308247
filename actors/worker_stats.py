"""What a worker tells of itself when it is asked, and what several have done together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dendrite.engine.stats import EngineStats
from dendrite.search.backend import BackendStats


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker has done (`engine`), and what it holds for others. `in_flight` counts calls under way."""

    worker: int
    engine: EngineStats
    live_nodes: int
    in_flight: int
    refused: int = 0
    """Calls that were answered with `Overloaded`."""
    reports: int = 0
    """Reports of everything to the tree manager, the first one of each shard included."""
    age_s: float = 0.0
    """How old `engine` is: it is told between two steps, and one that takes long is not waited for."""


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """Sign of life of a worker, which does not wait for the engine.

    `engine_silent_s` says how long a question to the engine has gone unanswered: it answers between two steps, and is
    asked once a second and oftener.
    """

    worker: int
    pid: int
    threads: int
    seconds_up: float
    epoch: int = 0
    engine_silent_s: float = 0.0
    draining: bool = False


def total(workers: Sequence[WorkerStats]) -> BackendStats:
    """Totals over workers, of which there is at least one."""
    engines = [worker.engine for worker in workers]
    decoded = sum(engine.decode_tokens for engine in engines)
    shared = sum(engine.shared_ratio * engine.decode_tokens for engine in engines)
    return BackendStats(
        prefill_tokens=sum(engine.prefill_tokens for engine in engines),
        recomputed_tokens=sum(engine.recomputed_tokens for engine in engines),
        decode_tokens=decoded,
        cached_tokens=sum(engine.cached_tokens for engine in engines),
        forks=sum(engine.forks for engine in engines),
        pages_held=sum(engine.pages_held for engine in engines),
        shared_ratio=shared / decoded if decoded else 0.0,
        page_tokens=engines[0].page_tokens,
        page_bytes=engines[0].page_bytes,
    )

"""Ranks as threads of the test's process: real sockets and real sums, without the seconds that a process takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from dendrite.config import EngineConfig
from dendrite.errors import RankLost
from dendrite.parallel.channel import Place
from dendrite.parallel.follower import follow
from dendrite.parallel.group import Group, join_store, open_store
from dendrite.parallel.sharding import Shard

T = TypeVar("T")
CPU = torch.device("cpu")


class ThreadFollowers:
    """`Followers` that are threads; `errors` has what they raised, `losses` what the leader has told."""

    def __init__(self, folder: Path, config: EngineConfig) -> None:
        self.errors: list[Exception] = []
        self.losses: list[RankLost] = []
        self._folder, self._config = folder, config
        self._threads: list[threading.Thread] = []

    def start(self, places: Sequence[Place]) -> None:
        self._threads = [threading.Thread(target=self._run, args=(place,), daemon=True) for place in places]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        if self.errors:
            raise self.errors[0]

    def lost(self, reason: RankLost) -> None:
        self.losses.append(reason)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(10.0)
            assert not thread.is_alive()

    def _run(self, place: Place) -> None:
        try:
            follow(place, self._folder, self._config, CPU)
        except Exception as error:
            self.errors.append(error)


def on_ranks(size: int, work: Callable[[Group], T]) -> list[T]:
    """Run `work` on all ranks of a group at once; the results by rank."""
    server = open_store()

    def run(rank: int) -> T:
        store = server if rank == 0 else join_store(server.port)
        return work(Group(Shard(rank, size), store, CPU))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))

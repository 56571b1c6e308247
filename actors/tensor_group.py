"""A model worker that is several processes: rank 0 is the `ModelWorker`, the other ranks are actors that it owns.

All lie in one placement group on one machine. Ray ends the actors with their owner, and the owner ends with any of
them: so the group dies as a whole, and is restarted as a whole when Ray restarts the worker.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group

from actors.reservations import bundle_options
from actors.rpc import Handle, translate
from dendrite.config import EngineConfig
from dendrite.errors import ClusterError, RankLost
from dendrite.parallel.channel import Place


class Follower:
    """A rank above 0. A Ray actor."""

    def follow(self, place: Place, model: str, config: EngineConfig, threads: int) -> None:
        """Do what the leader does until that hangs up; see `dendrite.parallel.follower.follow`."""
        import torch  # here: a process that only names this class should not load torch

        from dendrite.engine.device import choose_device
        from dendrite.parallel.follower import follow

        torch.set_num_threads(threads)
        follow(place, model, config, choose_device(config))


class RayFollowers:
    """The ranks above 0 of the worker that this process is, in the other bundles of its placement group."""

    def __init__(self, model: str, config: EngineConfig, threads: int) -> None:
        """Make ready to start.

        Args:
            model: folder of the model.
            config: the engine's, with the device that `WorkerShare` chose.
            threads: CPU threads of each.
        """
        self._model, self._config, self._threads = model, config, threads
        self._actors: list[Handle] = []
        self._runs: dict[int, Any] = {}

    def start(self, places: Sequence[Place]) -> None:
        """See `Followers.start`.

        Raises:
            ClusterError: this process is in no placement group with a bundle for each.
        """
        group = get_current_placement_group()
        if group is None or group.bundle_count <= len(places):
            raise ClusterError(f"a worker of {len(places) + 1} ranks needs a placement group of as many bundles")
        for place in places:
            actor: Handle = ray.remote(Follower).options(**bundle_options(group, place.rank)).remote()
            self._actors.append(actor)
            run = actor.follow.remote(place, self._model, self._config, self._threads)
            self._runs[place.rank] = run.future()

    def check(self) -> None:
        """See `Followers.check`."""
        for rank, run in self._runs.items():
            if run.done():
                error = run.exception()
                reason = translate(error, "its actor") if isinstance(error, RayError) else error
                raise RankLost(rank, str(reason or "it has gone"))

    def lost(self, reason: RankLost) -> None:
        """See `Followers.lost`: end this process too, as a crash would, so that Ray starts the worker afresh."""
        os._exit(1)

    def end(self) -> None:
        """See `Followers.end`."""
        for actor in self._actors:
            with contextlib.suppress(RayError, ValueError):  # one that is dead, or whose Ray is
                ray.kill(actor)
        self._actors.clear()


def followers_for(model: str, config: EngineConfig, threads: int) -> RayFollowers | None:
    """The other ranks of a worker; None for a worker that is one process."""
    return RayFollowers(model, config, threads) if config.tensor_parallel > 1 else None

"""Followers as processes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument, RankLost
from dendrite.model.config import ModelConfig
from dendrite.parallel.channel import Place
from dendrite.parallel.leader import Followers, Leader
from dendrite.parallel.sharding import Shard

_END_WITHIN_S = 5.0


class LocalFollowers:
    """A process each, on the CPU or on the CUDA device of its rank's number. They end with this process."""

    def __init__(self, folder: Path, config: EngineConfig, device: torch.device) -> None:
        """Make ready to start.

        Args:
            folder: the model's.
            config: the engine's.
            device: what rank 0 computes on.

        Raises:
            InvalidArgument: this machine has fewer GPUs than ranks.
        """
        size = config.tensor_parallel
        if device.type == "cuda" and torch.cuda.device_count() < size:
            found = torch.cuda.device_count()
            raise InvalidArgument("tensor_parallel", size, f"at most the {found} CUDA devices that torch sees here")
        self._folder, self._config, self._device = folder, config, device
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank from 1 on."""
        return [process.pid for _, process in sorted(self._processes.items())]

    def start(self, places: Sequence[Place]) -> None:
        """See `Followers.start`."""
        for place in places:
            process = subprocess.Popen(
                [sys.executable, "-m", "dendrite.parallel.follower"],
                stdin=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
            self._processes[place.rank] = process
            assert process.stdin is not None
            # One that has died already is reported by `check`. The secret stays off the command line.
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(json.dumps(self._told(place)).encode() + b"\n")

    def check(self) -> None:
        """See `Followers.check`."""
        for rank, process in self._processes.items():
            if process.poll() is not None:
                raise RankLost(rank, f"its process has ended with status {process.returncode}")

    def lost(self, reason: RankLost) -> None:
        """See `Followers.lost`: whoever uses the engine is told by it."""

    def end(self) -> None:
        """See `Followers.end`: wait for them, and kill those that do not go."""
        deadline = time.monotonic() + _END_WITHIN_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _told(self, place: Place) -> dict[str, object]:
        return {
            "rank": place.rank,
            "size": place.size,
            "port": place.port,
            "key": place.key.hex(),
            "folder": str(self._folder.absolute()),
            "config": self._config.model_dump(),
            "device": f"cuda:{place.rank}" if self._device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }


def form_group(
    folder: Path, config: EngineConfig, device: torch.device, followers: Followers | None = None
) -> Leader | None:
    """The group that `config.tensor_parallel` asks for, led from here; None for a single rank.

    Args:
        folder: the model's.
        config: the engine's.
        device: what rank 0 computes on.
        followers: the other ranks; None starts them on this machine.

    Raises:
        InvalidArgument: the model cannot be divided so, there are too few GPUs, or followers have nobody to follow.
        ModelError: the folder holds no model.
        ClusterError: a follower did not start.
    """
    size = config.tensor_parallel
    if size == 1:
        if followers is not None:
            raise InvalidArgument("followers", followers, "need tensor_parallel above 1")
        return None
    Shard(0, size).of(ModelConfig.from_folder(folder))  # before a process is started
    return Leader(size, followers or LocalFollowers(folder, config, device), device)

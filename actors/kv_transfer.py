"""KV moved from worker to worker, and what that costs.

The worker that needs it asks the one that has it. The reply is an object of Ray's: the source worker puts the arrays
into the shared memory of its machine, and the target reads them there in place, or has Ray copy them to its own machine
first. No byte passes through the client that has asked for it all.

KV on GPUs goes through host memory. Of Ray's direct transports (`tensor_transport=`, Ray 2.60), `cuda_ipc` needs both
workers to have the same GPU, `nccl` a fixed group that ends with any of its members, and `nixl` a package that is not
among Dendrite's dependencies.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.line_fit import LineFit
from actors.refs import ClusterNode, worker_name
from actors.rpc import Handle, call
from actors.signs import answer
from dendrite.errors import ClusterError, DendriteError

if TYPE_CHECKING:
    from dendrite.kv.path_kv import PathKv  # which loads torch

_KEEP, _ORIGIN = 0.9, 1e-6
"""See `LineFit`: some tens of transfers count, and two of different sizes are enough to tell latency and rate apart."""

STALE_S = 60.0
"""Rates that were measured so long ago are not gone by."""
SILENCE_S = 30.0
"""A source that gives no sign of life for so long is taken for dead."""


class TransferFailed(ClusterError):
    """A worker could not get KV from another; nothing was made, and the node can be computed instead."""

    def __init__(self, source: int, reason: str) -> None:
        self.source, self.reason = source, reason
        super().__init__(f"no KV from {worker_name(source)}: {reason}")


@dataclass(frozen=True, slots=True)
class KvSource:
    """Where KV lies: tokens `start` .. `end` - 1 on the path of the node `at`, on the worker behind `handle`."""

    handle: Handle
    at: ClusterNode
    start: int
    end: int

    async def fetch(self) -> PathKv:
        """Get it, in read-only arrays.

        Raises:
            TransferFailed: the source has it no more, or is gone or silent.
        """
        name = worker_name(self.at.worker)
        reply = self.handle.export_kv.remote(self.at.tree, self.at.node, self.start, self.end)
        try:
            waiting: asyncio.Future[PathKv] = asyncio.ensure_future(call(reply, name))
            return await answer(waiting, self.handle, name, SILENCE_S)
        except DendriteError as error:
            # Whatever happened to the source, it must not look as if it had happened to the worker that asks.
            raise TransferFailed(self.at.worker, str(error)) from None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A node that a worker has got from another: its name, and what has come for it."""

    at: ClusterNode
    tokens: int
    nbytes: int


class TransferRates:
    """How long transfers take, as measured: a latency, and a time for each byte.

    If the last one is longer ago than `STALE_S`, nothing is known any more: else slow ones would be the last for good.
    """

    def __init__(self) -> None:
        self._seconds = LineFit(keep=_KEEP, origin=_ORIGIN)
        self._token_bytes = 0.0
        self._last = 0.0

    def took(self, arrival: Arrival, seconds: float) -> None:
        """Take in a transfer."""
        self._token_bytes = arrival.nbytes / arrival.tokens
        self._last = time.monotonic()
        self._seconds.add(arrival.nbytes, seconds)

    @property
    def bytes_per_s(self) -> float | None:
        """Without the latency; None before the first transfer, and where their sizes make no difference."""
        _, slope = self._seconds.line
        return 1 / slope if slope > 0 else None

    @property
    def latency_s(self) -> float | None:
        """Of a transfer of nothing; None before the first transfer."""
        return self._seconds.line[0] if self._seconds else None

    def seconds(self, tokens: int) -> float | None:
        """What a transfer of so many tokens is likely to take; None where nothing is known."""
        if not self._seconds or time.monotonic() - self._last > STALE_S:
            return None
        return self._seconds.at(tokens * self._token_bytes)

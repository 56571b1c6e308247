"""Sums over the ranks of a tensor-parallel group: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]
    AllreduceOptions,
    BroadcastOptions,
    PrefixStore,
    ReduceOp,
    TCPStore,
)

from dendrite.parallel.channel import HOST
from dendrite.parallel.sharding import Shard

# Ranks wait for one another in the first step while each compiles its kernels.
_COLLECTIVE_TIMEOUT = timedelta(minutes=5)
_RENDEZVOUS_TIMEOUT = timedelta(seconds=60)


class Group:
    """The collective operations of one rank, on a process group of its own: torch's default one stays untouched."""

    def __init__(self, shard: Shard, store: TCPStore, device: torch.device) -> None:
        """Meet the other ranks, which must all be on their way here.

        Raises:
            RuntimeError: they did not come in time.
        """
        self.shard, self.device = shard, device
        self._store = store  # the server of rank 0 lives as long as this does
        self._backend: Any = _backend(PrefixStore("collectives", store), shard, device)
        self._sum = AllreduceOptions()
        self._sum.reduceOp = ReduceOp.SUM  # type: ignore[assignment]
        self._from_leader = BroadcastOptions()
        self._from_leader.rootRank = 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace `tensor`, contiguous and of the same shape on all ranks, by its sum over them.

        On CUDA in stream order: it returns before the sum is there.

        Raises:
            RuntimeError: a rank is gone.
        """
        self._working().allreduce([tensor], self._sum).wait()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors, of one shape, of all ranks, by rank. Else like `all_reduce`."""
        parts = [torch.empty_like(tensor) for _ in range(self.shard.size)]
        self._working().allgather([parts], [tensor.contiguous()]).wait()
        return parts

    def broadcast(self, tensor: Tensor) -> None:
        """Replace `tensor` by that of rank 0. Else like `all_reduce`."""
        self._working().broadcast([tensor], self._from_leader).wait()

    def _working(self) -> Any:
        backend = self._backend
        if backend is None:
            raise RuntimeError("the group has been aborted")
        return backend

    def abort(self) -> None:
        """Fail all that comes here, and what waits for this rank on the others. Idempotent.

        What waits here for another rank fails at once on CUDA; on the CPU when the other one dies or aborts.
        """
        backend, self._backend = self._backend, None  # without its last reference, gloo closes its connections
        if backend is not None and self.device.type == "cuda":
            backend.abort()


def open_store() -> TCPStore:
    """Serve, on a free port, the table in which ranks find one another."""
    return TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=_RENDEZVOUS_TIMEOUT)


def join_store(port: int) -> TCPStore:
    """Use the table that rank 0 serves."""
    return TCPStore(HOST, port, is_master=False, timeout=_RENDEZVOUS_TIMEOUT)


def _backend(store: PrefixStore, shard: Shard, device: torch.device) -> Any:
    if device.type == "cuda":
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = _COLLECTIVE_TIMEOUT
        return ProcessGroupNCCL(store, shard.rank, shard.size, options)
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=HOST)]
    options._timeout = _COLLECTIVE_TIMEOUT
    return ProcessGroupGloo(store, shard.rank, shard.size, options)

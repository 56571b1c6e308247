"""CUDA graphs of the parts of a decode step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch


class GraphPool:
    """Records work once and replays it; all graphs share one memory pool, as they never run at the same time.

    Off CUDA, or when told so, work is simply done each time.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle() if enabled else None

    def __contains__(self, key: Hashable) -> bool:
        return not self._enabled or key in self._graphs

    def record(self, key: Hashable, work: Callable[[], None]) -> None:
        """Record `work`, which must have run before, so that its kernels are compiled and loaded."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with _no_collection(), torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            work()
        self._graphs[key] = graph

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Replay what was recorded under `key`."""
        if self._enabled:
            self._graphs[key].replay()
        else:
            work()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from destroying an old graph while another is recorded, which CUDA refuses."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

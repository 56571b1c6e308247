"""Small data on its way to the GPU, without making the host wait for what the GPU still does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGN = 16
_BLOCKS = 3  # uploads under way at a time


def send(values: list[int], device: torch.device) -> Tensor:
    """[n] int64 on `device`, in stream order."""
    numbers = torch.tensor(values, dtype=torch.int64)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


class Mirror:
    """Named arrays side by side in one block, once in (pinned) host memory and once on the device.

    The addresses never change, so that a CUDA graph may read them. `host` are NumPy views; `device` are tensors, which
    kernels may change. One copy moves everything.
    """

    def __init__(self, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        """Lay out `fields`, shape and type by name, all zero."""
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            size = int(np.prod(shape)) * dtype.itemsize
            places[name] = end, size
            end += -(-size // _ALIGN) * _ALIGN
        self._staging = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._block = torch.zeros(end, dtype=torch.uint8, device=device)
        self.host: dict[str, npt.NDArray[Any]] = {}
        self.device: dict[str, Tensor] = {}
        for name, (shape, dtype) in fields.items():
            start, size = places[name]
            self.host[name] = self._staging[start : start + size].view(dtype).view(shape).numpy()
            self.device[name] = self._block[start : start + size].view(dtype).view(shape)

    def upload(self) -> None:
        """Copy all arrays to the device, in stream order.

        The copy reads `host` later: change it again only after an event behind the copy has been waited for.
        """
        self._block.copy_(self._staging, non_blocking=True)

    def download(self) -> None:
        """Copy all arrays from the device; `host` holds them once an event behind the copy has been waited for."""
        self._staging.copy_(self._block, non_blocking=True)


class Staging:
    """Page-locked host memory for uploads that nobody waits for: a block is reused when its copy is done."""

    def __init__(self, device_memory: Tensor) -> None:
        """Stage what goes to `device_memory`, [n] int32."""
        self._target = device_memory
        self._asynchronous = device_memory.is_cuda
        count = _BLOCKS if self._asynchronous else 1
        shape = device_memory.shape
        self._blocks = [torch.zeros(shape, dtype=torch.int32, pin_memory=self._asynchronous) for _ in range(count)]
        self._arrays = [block.numpy() for block in self._blocks]
        self._done = [torch.cuda.Event() for _ in range(count)] if self._asynchronous else []
        self._next = 0

    def take(self) -> npt.NDArray[np.int32]:
        """Host memory to fill before `send`; waits only for a copy that was started several uploads ago."""
        if self._asynchronous:
            self._done[self._next].synchronize()
        return self._arrays[self._next]

    def send(self, *ranges: tuple[int, int]) -> None:
        """Copy those ranges of what `take` gave to the device, in the current stream's order."""
        block = self._blocks[self._next]
        for start, end in ranges:
            self._target[start:end].copy_(block[start:end], non_blocking=True)
        if self._asynchronous:
            self._done[self._next].record()
        self._next = (self._next + 1) % len(self._blocks)

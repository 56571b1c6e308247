"""The masks of a batch on their way to the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dendrite.grammar.compiler import Bits


class MaskRows:
    """Packed masks, a row of the batch each: in pinned memory, and on the device at an address that never changes.

    One transfer a step moves the rows that are in use. On CUDA it has a stream of its own, so that it happens while the
    step before still runs; what is queued on the current stream afterwards waits for it.
    """

    def __init__(self, rows: int, words: int, device: torch.device) -> None:
        """Make room for `rows` masks of `words` int32 words."""
        on_cuda = device.type == "cuda"
        self._staging = torch.zeros(rows, words, dtype=torch.int32, pin_memory=on_cuda)
        self._host = self._staging.numpy()
        self._stream = torch.cuda.Stream(device) if on_cuda else None
        self.device: Tensor = torch.zeros(rows, words, dtype=torch.int32, device=device)
        """[rows, words] int32. Rows without a grammar hold anything."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())  # which clears the memory first

    def upload(self, rows: Sequence[int], bits: Sequence[Bits]) -> None:
        """Send the masks `bits` of `rows`. The step that read the ones before must have ended its sampling."""
        if not rows:
            return
        for row, each in zip(rows, bits, strict=True):
            self._host[row] = each
        used = slice(0, max(rows) + 1)
        if self._stream is None:
            self.device[used] = self._staging[used]
            return
        with torch.cuda.stream(self._stream):
            self.device[used].copy_(self._staging[used], non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._stream)

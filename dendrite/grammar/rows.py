"""The masks of a batch on their way to the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from dendrite.grammar.walk import MaskTable


class MaskRows:
    """Packed masks, a row of the batch each: in pinned memory, and on the device at an address that never changes.

    One transfer a step moves the rows that are in use. On CUDA it has a stream of its own, so that it happens while the
    step before still runs; what is queued on the current stream afterwards waits for it.
    """

    def __init__(self, rows: int, words: int, device: torch.device) -> None:
        """Make room for `rows` masks of `words` int32 words."""
        on_cuda = device.type == "cuda"
        self._staging = torch.zeros(rows, words, dtype=torch.int32, pin_memory=on_cuda)
        self.host: MaskTable = self._staging.numpy()
        """[rows, words] int32; what `upload` sends."""
        self._stream = torch.cuda.Stream(device) if on_cuda else None
        self.device: Tensor = torch.zeros(rows, words, dtype=torch.int32, device=device)
        """[rows, words] int32. Rows without a grammar hold anything."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())  # which clears the memory first

    def upload(self, count: int) -> None:
        """Send the first `count` rows. The step that read the ones before must have ended its sampling."""
        if self._stream is None:
            self.device[:count] = self._staging[:count]
            return
        with torch.cuda.stream(self._stream):
            self.device[:count].copy_(self._staging[:count], non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._stream)

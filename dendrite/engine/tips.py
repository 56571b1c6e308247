"""The hidden states that generations continue from."""

from __future__ import annotations

import torch
from torch import Tensor

from dendrite.transfer import send


class TipStore:
    """A growing table of final hidden states, [capacity, d] on the device, with a free list of rows (*slots*).

    A node's tip is the hidden state of its last token after the final norm: what its next token, and its value, are
    computed from. A missing tip costs one row of recomputation, never a wrong result.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, capacity: int = 256) -> None:
        self._states = torch.empty(capacity, width, dtype=dtype, device=device)
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def states(self) -> Tensor:
        """The table itself, [capacity, d]; another tensor after it has grown."""
        return self._states

    @property
    def used(self) -> int:
        """Slots in use."""
        return len(self._states) - len(self._free)

    def allocate(self) -> int:
        """A slot whose content is undefined; the table doubles when it is full."""
        if not self._free:
            size = len(self._states)
            self._states = torch.cat([self._states, torch.empty_like(self._states)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        return self._free.pop()

    def release(self, slot: int) -> None:
        """Return a slot."""
        self._free.append(slot)

    def read(self, slots: list[int]) -> Tensor:
        """[B, d] hidden states."""
        return self._states.index_select(0, send(slots, self._states.device))

    def write(self, slots: list[int], states: Tensor) -> None:
        """Store `states` [B, d], one row a slot."""
        self._states.index_copy_(0, send(slots, self._states.device), states)

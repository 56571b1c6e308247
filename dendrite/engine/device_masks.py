"""Grammars in the device loop: the masks of its rows, and what they leave of the model's probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dendrite.engine.constraints import constrained
from dendrite.engine.generation import Generation
from dendrite.grammar.rows import MaskRows
from dendrite.kernels import grammar
from dendrite.transfer import Mirror


class DeviceMasks:
    """Masks for up to `rows` rows, with memory of their own from the first that is needed."""

    def __init__(self, rows: int, vocabulary: int, device: torch.device, *, pdl: bool) -> None:
        self._shape, self._device, self._pdl = (rows, vocabulary), device, pdl
        self._made: tuple[MaskRows, Tensor, Mirror] | None = None

    def upload(self, generations: Sequence[Generation]) -> None:
        """Send the masks of the rows that have a grammar, in one transfer."""
        self._buffers()[0].upload(*constrained(generations))

    def apply(self, logits: Tensor, flags: Tensor) -> None:
        """Mask [B, V] `logits` in place where `flags` [B] int32 is 1; see `dendrite.kernels.grammar.mask_logits`."""
        masks, workspace, mass = self._buffers()
        rows = len(logits)
        bits, log_mass = masks.device[:rows], mass.device["log_mass"][:rows]
        grammar.mask_logits(logits, bits, flags, workspace[:rows], log_mass, pdl=self._pdl)

    def download(self) -> None:
        """Queue the way back of what `log_mass` returns."""
        self._buffers()[2].download()

    def log_mass(self, count: int) -> list[float]:
        """Of the first `count` rows, once an event behind `download` has been waited for."""
        values: list[float] = self._buffers()[2].host["log_mass"][:count].tolist()
        return values

    def _buffers(self) -> tuple[MaskRows, Tensor, Mirror]:
        if self._made is None:
            rows, vocabulary = self._shape
            blocks = grammar.mask_blocks(vocabulary)
            self._made = (
                MaskRows(rows, -(-vocabulary // 32), self._device),
                torch.empty(rows, blocks, 4, dtype=torch.float32, device=self._device),
                Mirror({"log_mass": ((rows,), torch.float32)}, self._device),
            )
        return self._made

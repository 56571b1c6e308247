"""Grammars in the device loop: the masks of its rows, and what they leave of the model's probability."""

from __future__ import annotations

import torch
from torch import Tensor

from dendrite.grammar.rows import MaskRows
from dendrite.grammar.walk import MaskTable
from dendrite.kernels import grammar
from dendrite.kernels.sampling import TokenMasks


class DeviceMasks:
    """Masks for up to `rows` rows, with memory of their own from the first that is needed."""

    def __init__(self, rows: int, vocabulary: int, device: torch.device, *, pdl: bool) -> None:
        self._shape, self._device, self._pdl = (rows, vocabulary), device, pdl
        self._made: tuple[MaskRows, Tensor] | None = None

    @property
    def host(self) -> MaskTable:
        """[rows, words] int32: the masks that `upload` sends."""
        return self._buffers()[0].host

    def upload(self, count: int) -> None:
        """Send the masks of the first `count` rows, in one transfer."""
        self._buffers()[0].upload(count)

    def token_masks(self, constrained: Tensor, log_mass: Tensor) -> TokenMasks:
        """What `upload` has sent for as many rows as `constrained` has, in the form that sampling takes."""
        return TokenMasks(self._buffers()[0].device[: len(constrained)], constrained, log_mass)

    def apply(self, logits: Tensor, masks: TokenMasks) -> None:
        """Mask [B, V] `logits` in place; see `dendrite.kernels.grammar.mask_logits`."""
        workspace = self._buffers()[1][: len(logits)]
        grammar.mask_logits(logits, masks.bits, masks.constrained, workspace, masks.log_mass, pdl=self._pdl)

    def _buffers(self) -> tuple[MaskRows, Tensor]:
        if self._made is None:
            rows, vocabulary = self._shape
            blocks = grammar.mask_blocks(vocabulary)
            self._made = (
                MaskRows(rows, -(-vocabulary // 32), self._device),
                torch.empty(rows, blocks, 4, dtype=torch.float32, device=self._device),
            )
        return self._made

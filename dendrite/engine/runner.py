"""Runs batches through the model; owns the tensors: weights, KV, tips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dendrite.attention.base import Attention, ForwardBatch
from dendrite.engine.tips import TipStore
from dendrite.kv.pages import TailCopy
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder
from dendrite.model.value_head import ValueHead


class ModelRunner:
    """One model on one device."""

    def __init__(
        self, decoder: Decoder, value_head: ValueHead | None, storage: KvStorage, attention: Attention
    ) -> None:
        self.decoder = decoder
        self.storage = storage
        self.batch_device = decoder.device
        """Where `run` wants its batches."""
        self.kv_heads = decoder.config.num_kv_heads
        """Key-value heads of the whole model."""
        self.tips = TipStore(decoder.config.hidden_size, decoder.dtype, decoder.device)
        self._value_head = value_head
        self._attention = attention

    @property
    def has_value_head(self) -> bool:
        """Whether the model estimates values."""
        return self._value_head is not None

    def logits_at(self, tips: list[int]) -> Tensor:
        """[B, V] float32 logits of the tokens that follow the hidden states in these slots."""
        with torch.inference_mode():
            return self.decoder.logits(self.tips.read(tips))

    def values_at(self, tips: list[int]) -> list[float]:
        """The value head's estimates at the hidden states in these slots."""
        if self._value_head is None or not tips:
            return []
        with torch.inference_mode():
            values: list[float] = self._value_head(self.tips.read(tips)).tolist()
            return values

    def read_tokens(self, slots: Tensor) -> Tensor:
        """A copy of what lies in slots [T] (on the host): [layers, 2, T, Hkv, D], keys before values."""
        return self.storage.read_tokens(slots)

    def write_tokens(self, slots: Tensor, kv: Tensor) -> None:
        """Fill slots [T] (on the host) with what `read_tokens` gave."""
        self.storage.write_tokens(slots, kv)

    def copy_tails(self, copies: Sequence[TailCopy]) -> None:
        """Copy tail pages, before anything of the step is written."""
        if copies:
            with torch.inference_mode():
                self.storage.copy_tails(copies)

    def run(self, batch: ForwardBatch) -> Tensor:
        """Write the batch's keys and values; return [T, d] final hidden states."""
        with torch.inference_mode():
            return self.decoder.forward(batch, self._attention)

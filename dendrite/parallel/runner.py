"""The model of a tensor-parallel group, as an engine on rank 0 uses it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dendrite.attention.base import Attention, ForwardBatch
from dendrite.engine.runner import ModelRunner
from dendrite.kv.pages import TailCopy
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder
from dendrite.model.value_head import ValueHead
from dendrite.parallel.commands import Kind, on_device, pack, pack_batch, pack_copies
from dendrite.parallel.heads import gather_tokens, scatter_tokens
from dendrite.parallel.leader import Leader


class LeaderRunner(ModelRunner):
    """A `ModelRunner` whose every write to KV is made on all ranks, each to its own heads.

    Hidden states are whole on every rank, so tips, logits and values need the leader alone.
    """

    def __init__(
        self, decoder: Decoder, value_head: ValueHead | None, storage: KvStorage, attention: Attention, leader: Leader
    ) -> None:
        super().__init__(decoder, value_head, storage, attention)
        self._leader = leader
        self.kv_heads *= leader.size
        self.batch_device = torch.device("cpu")  # from where it goes to the followers too

    def read_tokens(self, slots: Tensor) -> Tensor:
        """See `ModelRunner.read_tokens`."""
        with self._leader.lockstep(pack(Kind.READ, slots.tolist())):
            return gather_tokens(self._leader.group, self.storage, slots)

    def write_tokens(self, slots: Tensor, kv: Tensor) -> None:
        """See `ModelRunner.write_tokens`."""
        with self._leader.lockstep(pack(Kind.WRITE, slots.tolist())):
            scatter_tokens(self._leader.group, self.storage, slots, kv)

    def copy_tails(self, copies: Sequence[TailCopy]) -> None:
        """See `ModelRunner.copy_tails`."""
        if copies:
            with self._leader.lockstep(pack_copies(copies)):
                super().copy_tails(copies)

    def run(self, batch: ForwardBatch) -> Tensor:
        """See `ModelRunner.run`.

        Raises:
            RankLost: a rank did not do its part; the result is nobody's.
        """
        with self._leader.lockstep(pack_batch(batch)):
            return super().run(on_device(batch, self.decoder.device))

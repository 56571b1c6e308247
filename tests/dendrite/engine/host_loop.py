"""The device loop's contract in plain PyTorch, so that bursts can be tested where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.attention.torch_reference import TorchAttention
from dendrite.config import EngineConfig
from dendrite.engine.burst import Burst
from dendrite.engine.clock import StepClock
from dendrite.engine.constraints import Constraints
from dendrite.engine.generation import Generation
from dendrite.engine.sampler import SamplingBatch, logprobs_of, sample, uniform
from dendrite.engine.tips import TipStore
from dendrite.grammar.masks import masked
from dendrite.kv.cache import KvCache
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder


class HostLoop:
    """See `DeviceLoop`; stop ids are left to the host."""

    def __init__(
        self, decoder: Decoder, storage: KvStorage, tips: TipStore, cache: KvCache, config: EngineConfig, longest: int
    ) -> None:
        self._decoder, self._tips, self._cache, self._longest = decoder, tips, cache, longest
        self._attention, self._size = TorchAttention(storage), config.page_size
        self._history: list[Tensor] = []
        self.clock = StepClock()
        self.interrupt_in = -2  # bursts until one is interrupted while the host waits for it

    def run(self, generations: Sequence[Generation], steps: int, version: int, constraints: Constraints) -> Burst:
        states = self._tips.read([generation.tip for generation in generations])
        settings = SamplingBatch.of([g.params for g in generations], self._decoder.config.vocab_size, states.device)
        rows = [row for row, generation in enumerate(generations) if generation.matcher is not None]
        masks = np.zeros((len(generations), -(-self._decoder.config.vocab_size // 32)), np.int32)
        walk = constraints.walk(generations, masks) if rows else None
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        log_mass: list[Tensor] = []
        self._history = []
        for step in range(steps):
            lengths = [generation.node.length + step for generation in generations]
            assert max(lengths) < self._longest
            keys = np.array([(g.seed, g.branch, n) for g, n in zip(generations, lengths, strict=True)], np.uint64)
            logits = self._decoder.logits(states)
            if rows:
                raw, logits = logits, masked(logits, rows, [masks[row] for row in rows])
                log_mass.append(logits.logsumexp(1) - raw.logsumexp(1))
            drawn = sample(logits, settings, uniform(keys[:, 0], keys[:, 1], keys[:, 2]))
            tokens.append(drawn)
            logprobs.append(logprobs_of(logits, drawn))
            states = self._decoder.forward(self._batch(generations, drawn, lengths), self._attention)
            self._history.append(states)
            if walk is not None and not walk.step(drawn.tolist()):
                break
        self._tips.write([generation.node.tip for generation in generations], states)
        self.interrupt_in -= 1
        if self.interrupt_in == 0:
            raise KeyboardInterrupt
        made = Burst(torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist())
        if walk is None:
            return made
        walk.finish()
        raw = torch.stack(logprobs, 1) + torch.stack(log_mass, 1)
        return replace(made, raw=raw.tolist(), walk=walk)

    def rewind(self, ends: Sequence[tuple[int, Generation, int]]) -> None:
        for row, generation, accepted in ends:
            self._tips.write([generation.node.tip], self._history[accepted - 1][row : row + 1])

    def savings(self) -> dict[str, int]:
        return {}

    def _batch(self, generations: Sequence[Generation], tokens: Tensor, positions: list[int]) -> ForwardBatch:
        tables = [self._cache.page_table(generation.node) for generation in generations]
        counts = [position // self._size + 1 for position in positions]
        stacked = np.zeros((len(tables), max(counts)), np.int64)
        for row, (table, count) in enumerate(zip(tables, counts, strict=True)):
            stacked[row, :count] = table[:count]
        slots = [
            table[at // self._size] * self._size + at % self._size for table, at in zip(tables, positions, strict=True)
        ]
        return ForwardBatch(
            tokens=tokens,
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            query_start=list(range(len(tables) + 1)),
            context=[position + 1 for position in positions],
            page_table=torch.from_numpy(stacked),
            shared_pages=[],
        )

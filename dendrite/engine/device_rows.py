"""The rows of a batch as the device has them: where each stands, how it samples, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dendrite.engine.generation import Generation
from dendrite.engine.sampler import SamplingBatch, filtered, temperature_of, top_k_of
from dendrite.kernels.sampling import STOP_IDS
from dendrite.transfer import Mirror


class DeviceRows:
    """The rows of one batch after the other, for up to as many.

    Attributes:
        device: tensors of all rows by name: `alive`, `positions` (advanced there), `from` and `to` (tips), `seeds`,
            `branches`, `temperature`, `top_k`, `top_p`, `min_p`, `stop_ids` and `constrained`; and `step`, which is
            the batch's.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self._mirror = Mirror(_fields(rows), device)
        self.device = self._mirror.device
        self._vocabulary = vocabulary

    def fill(self, generations: Sequence[Generation], size: int) -> None:
        """Describe the generations, and send the description; rows from there to `size` are quiet."""
        host, count = self._mirror.host, len(generations)
        host["alive"][:count] = 1
        host["alive"][count:size] = 0
        host["step"][0] = 0
        nodes = [generation.node for generation in generations]
        host["positions"][:count] = [node.length for node in nodes]
        host["from"][:count] = [generation.tip for generation in generations]
        host["to"][:count] = [node.tip for node in nodes]
        for name, keys in (("seeds", [g.seed for g in generations]), ("branches", [g.branch for g in generations])):
            host[name].view(np.uint64)[:count] = np.array(keys, dtype=np.uint64)
        settings = [generation.params for generation in generations]
        host["temperature"][:count] = [temperature_of(params) for params in settings]
        host["top_k"][:count] = [top_k_of(params, self._vocabulary) for params in settings]
        host["top_p"][:count, 0] = [params.top_p for params in settings]
        host["min_p"][:count, 0] = [params.min_p for params in settings]
        host["stop_ids"][:count] = -1
        for row, generation in enumerate(generations):
            if generation.stop_ids:  # the host checks all of them again: more than fit cost steps, not correctness
                known = sorted(generation.stop_ids)[:STOP_IDS]
                host["stop_ids"][row, : len(known)] = known
        host["constrained"][:count] = [generation.matcher is not None for generation in generations]
        host["constrained"][count:size] = 0
        self._mirror.upload()

    def silence(self) -> None:
        """Make all rows quiet, so that running them leaves no trace."""
        for name in ("alive", "step", "constrained"):
            self.device[name].zero_()

    def filtered(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What the rows' filters leave of their logits, the rest at minus infinity.

        Args:
            logits: [rows, V] of the first rows.

        Returns:
            [rows, V] float32 at the rows' temperatures, and the temperatures that are left: [rows] float32, 1 where a
            row samples and 0 where it takes the likeliest.
        """
        rows = {name: self.device[name][: len(logits)] for name in ("temperature", "top_k", "top_p", "min_p")}
        sampled = rows["temperature"] > 0
        batch = SamplingBatch(None, None, rows["top_k"], rows["top_p"], rows["min_p"], ())
        scaled = logits / torch.where(sampled, rows["temperature"], 1.0).unsqueeze(1)
        return filtered(scaled, batch), sampled.float()


def _fields(rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    whole, wide, real = torch.int32, torch.int64, torch.float32
    return {
        "step": ((1,), whole),
        "alive": ((rows,), whole),
        "positions": ((rows,), whole),
        "from": ((rows,), wide),
        "to": ((rows,), wide),
        "seeds": ((rows,), wide),
        "branches": ((rows,), wide),
        "temperature": ((rows,), real),
        "top_k": ((rows,), wide),
        "top_p": ((rows, 1), real),
        "min_p": ((rows, 1), real),
        "stop_ids": ((rows, STOP_IDS), whole),
        "constrained": ((rows,), whole),
    }

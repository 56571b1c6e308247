"""Drawing tokens on the host, one a row and step: with penalties, biases, and all else that it must look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dendrite.engine.constraints import Constraints, note_raw
from dendrite.engine.generation import Generation
from dendrite.engine.sampler import (
    Keys,
    SamplingBatch,
    likeliest,
    logprobs_of,
    penalise,
    row_keys,
    sample,
    uniform_at,
)
from dendrite.search.backend import TopLogprobs


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token for each row, with its natural-log probability.

    Where some row has a grammar, `raw` are the model's own log-probabilities, before grammars have taken any away.
    `likeliest` has what rows ask for beside their token, by row.
    """

    tokens: list[int]
    logprobs: list[float]
    raw: list[float] | None
    likeliest: dict[int, TopLogprobs]

    def note(self, row: int, generation: Generation) -> None:
        """Store what goes with the row's token, once that is on the generation's node for good."""
        if self.raw is not None and generation.matcher is not None:
            note_raw(generation.node, [self.raw[row]])
        if row in self.likeliest:
            generation.top_logprobs.append(self.likeliest[row])


class HostSampler:
    """Draws for the decoding rows of one engine; keeps their settings as tensors while the rows stay the same."""

    def __init__(self, constraints: Constraints) -> None:
        self._constraints = constraints
        self._kept: tuple[int, SamplingBatch, Keys] | None = None

    def draw(self, logits: Tensor, rows: Sequence[Generation], version: int) -> Drawn:
        """Draw a token for every row.

        Args:
            logits: [B, V] float32, at the ends of the rows' nodes.
            rows: B generations, whose masks are there where they have a grammar (`Constraints.failed`).
            version: changes whenever the list of rows does.
        """
        masked = self._constraints.mask(logits, rows)
        batch, keys = self._settings(logits, rows, version)
        positions = np.array([generation.node.length for generation in rows], dtype=np.uint64)
        tokens = sample(_adjusted(masked, batch, rows), batch, uniform_at(keys, positions))
        raw = None if masked is logits else logprobs_of(logits, tokens).tolist()
        return Drawn(tokens.tolist(), logprobs_of(masked, tokens).tolist(), raw, _likeliest(masked, rows))

    def _settings(self, logits: Tensor, rows: Sequence[Generation], version: int) -> tuple[SamplingBatch, Keys]:
        """The settings of the rows, and the keys of their noise."""
        if self._kept is None or self._kept[0] != version:
            batch = SamplingBatch.of([generation.params for generation in rows], logits.shape[1], logits.device)
            seeds, branches = np.array([(g.seed, g.branch) for g in rows], dtype=np.uint64).T
            self._kept = version, batch, row_keys(seeds, branches)
        return self._kept[1:]


def _adjusted(logits: Tensor, batch: SamplingBatch, generations: Sequence[Generation]) -> Tensor:
    """`logits` [B, V] with penalties, biases and known continuations taken into account; the same where none are."""
    rows, tokens, changes = _changes(generations)
    if not batch.penalised and not rows:
        return logits
    logits = logits.clone()
    for row in batch.penalised:
        counts = generations[row].counts
        assert counts is not None
        logits[row] = penalise(
            logits[row],
            generations[row].params,
            counts.seen.to(logits.device),
            counts.generated.to(logits.device),
        )
    if rows:
        logits[rows, tokens] += torch.tensor(changes, device=logits.device)
    return logits


def _changes(generations: Sequence[Generation]) -> tuple[list[int], list[int], list[float]]:
    """Rows, tokens and changes of their logits: biases, and what takes the share of known continuations away."""
    rows: list[int] = []
    tokens: list[int] = []
    changes: list[float] = []
    for row, generation in enumerate(generations):
        if not generation.params.logit_bias and generation.without is None:
            continue
        changed = dict(generation.params.logit_bias)
        if generation.without is not None:
            for token, log_share in generation.without.log_shares().items():
                share = log_share * (generation.params.temperature or 1.0)  # divided by it later
                changed[token] = changed.get(token, 0.0) + share
        rows.extend([row] * len(changed))
        tokens.extend(changed)
        changes.extend(changed.values())
    return rows, tokens, changes


def _likeliest(logits: Tensor, generations: Sequence[Generation]) -> dict[int, TopLogprobs]:
    """The most likely tokens of the rows that ask for some, as many as each asks for."""
    wanted = {row: g.params.top_logprobs for row, g in enumerate(generations) if g.params.top_logprobs}
    if not wanted:
        return {}
    found = likeliest(logits[list(wanted)], min(max(wanted.values()), logits.shape[-1]))
    return {row: pairs[:most] for (row, most), pairs in zip(wanted.items(), found, strict=True)}

"""Choosing the next token of every decoding row at once, reproducibly.

The noise of a row is one uniform number, a hash of (seed, branch, position): it depends on nothing else in the batch,
so a search replays token for token. Tokens are drawn by inverting the cumulative distribution at that number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dendrite.config import SamplingParams

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_COLDEST = 1e-30
"""Divided by a lower temperature, a logit may be infinite in float32."""

Keys = npt.NDArray[np.uint64]


def uniform(seeds: Keys, branches: Keys, positions: Keys) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row, a pure function of the three keys.

    Each key is folded in by the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, figure 16).
    """
    return uniform_at(row_keys(seeds, branches), positions)


def row_keys(seeds: Keys, branches: Keys) -> Keys:
    """The part of `uniform` that a row keeps while it moves on."""
    return _mix(_mix(seeds + _GOLDEN) ^ (branches * _GOLDEN + _GOLDEN))


def uniform_at(rows: Keys, positions: Keys) -> npt.NDArray[np.float64]:
    """The part of `uniform` that differs at each position, of what `row_keys` gave."""
    state = _mix(rows ^ (positions * _GOLDEN + _MIX1))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX1
    state = (state ^ (state >> np.uint64(27))) * _MIX2
    return state ^ (state >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The sampling settings of a fixed list of rows as tensors; reused while the list stays the same.

    A field that no row uses is None, so that its work is skipped for the whole batch.
    """

    temperature: Tensor | None  # [B, 1] float32; None where every row is greedy
    greedy: Tensor | None  # [B] bool; None where no row is greedy
    top_k: Tensor | None  # [B] int64, the vocabulary size where off
    top_p: Tensor | None  # [B, 1] float32
    min_p: Tensor | None  # [B, 1] float32
    penalised: tuple[int, ...]  # rows with a penalty

    @classmethod
    def of(cls, rows: Sequence[SamplingParams], vocabulary: int, device: torch.device) -> SamplingBatch:
        """Gather the settings of `rows`, in order, for a vocabulary of that many tokens."""
        greedy = [row.temperature == 0.0 for row in rows]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)

        any_sampled = not all(greedy)
        return cls(
            temperature=column([temperature_of(row) or 1.0 for row in rows]) if any_sampled else None,
            greedy=torch.tensor(greedy, device=device) if any(greedy) else None,
            top_k=_optional_top_k(rows, vocabulary, device) if any_sampled else None,
            top_p=column([row.top_p for row in rows]) if any_sampled and any(r.top_p < 1.0 for r in rows) else None,
            min_p=column([row.min_p for row in rows]) if any_sampled and any(r.min_p > 0.0 for r in rows) else None,
            penalised=tuple(i for i, row in enumerate(rows) if has_penalty(row)),
        )


def _optional_top_k(rows: Sequence[SamplingParams], vocabulary: int, device: torch.device) -> Tensor | None:
    if not any(row.top_k for row in rows):
        return None
    return torch.tensor([top_k_of(row, vocabulary) for row in rows], dtype=torch.int64, device=device)


def temperature_of(params: SamplingParams) -> float:
    """The temperature to sample at: 0 for greedy rows, else as far down as logits can be divided by it."""
    return params.temperature and max(params.temperature, _COLDEST)


def top_k_of(params: SamplingParams, vocabulary: int) -> int:
    """How many of the likeliest tokens may come, out of `vocabulary`: all of them where top-k is off."""
    return min(params.top_k or vocabulary, vocabulary)


def has_penalty(params: SamplingParams) -> bool:
    """Whether the settings change logits by the tokens already on the path."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def penalise(logits: Tensor, params: SamplingParams, seen: Tensor, generated: Tensor) -> Tensor:
    """Apply repetition, presence and frequency penalties to one row.

    Args:
        logits: [V] float32.
        params: the row's settings.
        seen: [V] bool, tokens anywhere on the path.
        generated: [V] float32, how often each token was generated on the path.

    Returns:
        [V] float32, a new tensor.
    """
    shrunk = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
    logits = torch.where(seen, shrunk, logits)
    return logits - params.frequency_penalty * generated - params.presence_penalty * (generated > 0)


def sample(logits: Tensor, batch: SamplingBatch, noise: npt.NDArray[np.float64]) -> Tensor:
    """Draw one token a row.

    Args:
        logits: [B, V] float32, penalties applied.
        batch: settings of the B rows.
        noise: [B] float64, multiples of 2**-53 in [0, 1).

    Returns:
        [B] int64 token ids.
    """
    if batch.temperature is None:
        return _most_likely(logits)
    probabilities = torch.softmax(filtered(logits / batch.temperature, batch), dim=-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    # Below the total, also when rounded: the largest noise is 1 - 2**-53.
    target = torch.from_numpy(noise).to(logits.device).unsqueeze(1) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return drawn if batch.greedy is None else torch.where(batch.greedy, _most_likely(logits), drawn)


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """[B] natural-log probabilities of `tokens` [B] under `logits` [B, V] at temperature 1."""
    return torch.log_softmax(logits, dim=-1).gather(1, tokens.unsqueeze(1)).squeeze(1)


def likeliest(logits: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """For each row of `logits` [B, V], its `count` most likely tokens: ids and natural-log probabilities, in order.

    Fewer where fewer are possible.
    """
    ids = logits.topk(count, dim=-1).indices
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids)  # just as `logprobs_of` has it
    return [
        tuple((id, logprob) for id, logprob in zip(*row, strict=True) if logprob > -math.inf)
        for row in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]


def filtered(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """[B, V] logits, divided by temperature, with what top-k, top-p and min-p remove set to minus infinity."""
    if batch.min_p is not None:
        floor = logits.amax(-1, keepdim=True) + batch.min_p.log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if batch.top_k is None and batch.top_p is None:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    removed = torch.zeros_like(ordered, dtype=torch.bool)
    if batch.top_k is not None:
        removed |= torch.arange(logits.shape[-1], device=logits.device) >= batch.top_k.unsqueeze(1)
        ordered = ordered.masked_fill(removed, -torch.inf)
    if batch.top_p is not None:
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        removed |= (before >= batch.top_p) & (batch.top_p < 1.0)
    return logits.masked_fill(removed.gather(-1, order.argsort(-1)), -torch.inf)


def _most_likely(logits: Tensor) -> Tensor:
    """The smallest id among the most likely tokens; `argmax` alone leaves ties open."""
    best = logits == logits.amax(-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(best, ids, logits.shape[-1]).amin(-1).clamp(max=logits.shape[-1] - 1)

"""Choosing the next tokens of a batch on the device, as `dendrite.engine.sampler` does on the host.

Two kernels. The first reduces blocks of the vocabulary to their maximum and their sum of exponentials. The second
draws a block of each row from those, then a token within the block, whose probabilities it computes again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.kernels.pdl import wait_for_previous

STOP_IDS = 8
"""Stop ids that a row may have."""

_BLOCK = 1024  # tokens of a block, at most
# Of a block: maximum and sum of exponentials of the filtered logits, of the raw ones, and of those before masks.
_STATISTICS = tl.constexpr(6)
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX2 = tl.constexpr(0x94D049BB133111EB)


def sampling_workspace(rows: int, vocabulary: int, device: torch.device | str) -> Tensor:
    """Memory that `sample` needs for up to that many rows: [rows, blocks, 6] float32."""
    blocks = triton.cdiv(vocabulary, _block(vocabulary))
    return torch.empty((rows, blocks, _STATISTICS.value), dtype=torch.float32, device=device)


def _block(vocabulary: int) -> int:
    return int(min(_BLOCK, triton.next_power_of_2(vocabulary)))


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """What grammars allow the rows of a batch.

    Attributes:
        bits: [B, ceil(V / 32)] int32; bit t % 32 of word t // 32 allows token t. At least one is set in a row.
        constrained: [B] int32, 1 for rows with a grammar; the bits of the others are not read.
        log_mass: [B] float32, written: log of the probability, at temperature 1, of what is allowed; 0 without grammar.
    """

    bits: Tensor
    constrained: Tensor
    log_mass: Tensor


def sample(
    logits: Tensor,
    filtered: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    branches: Tensor,
    positions: Tensor,
    stop_ids: Tensor,
    alive: Tensor,
    step: Tensor,
    workspace: Tensor,
    token: Tensor,
    stopping: Tensor,
    token_ring: Tensor,
    logprob_ring: Tensor,
    *,
    masks: TokenMasks | None = None,
    pdl: bool = False,
) -> None:
    """Draw one token for every living row.

    The noise is the hash of (seed, branch, position) of `dendrite.engine.sampler.uniform`, bit for bit. The token is
    where it falls in the cumulative distribution of softmax(filtered / temperature); a token whose filtered logit is
    -inf is never drawn. At temperature 0 it is the smallest id among the most likely.

    Args:
        logits: [B, V] float32; what `masks` forbid is set to -inf.
        filtered: [B, V] float32 with the logits of excluded tokens at -inf, or `logits` itself where there are none.
        temperature: [B] float32, 0 for greedy rows.
        seeds: [B] int64, read as unsigned.
        branches: [B] int64, read as unsigned.
        positions: [B] int32, where on its path the token will stand.
        stop_ids: [B, 8] int32, padded with -1.
        alive: [B] int32, 0 or 1. A dead row keeps its token and leaves -1 in the ring.
        step: [1] int32, on the device: where in the rings this step writes.
        workspace: from `sampling_workspace`.
        token: [B] int32, written.
        stopping: [B] int32, written: 1 where the token is one of the row's stop ids.
        token_ring: [K, R] int32, R at least B; written at [step, :B].
        logprob_ring: [K, R] float32, likewise: log softmax(logits)[token], 0 for dead rows.
        masks: of grammars, where some row has one. Only with `filtered` the same as `logits`; filters must see masked
            logits (`dendrite.kernels.grammar.mask_logits`).
        pdl: launch while the kernel before still runs.
    """
    rows, vocabulary = logits.shape
    if stop_ids.shape[1] != STOP_IDS:
        raise InvalidArgument("stop_ids", tuple(stop_ids.shape), f"must have {STOP_IDS} columns")
    blocks = workspace.shape[1]
    same = filtered.data_ptr() == logits.data_ptr()
    if masks is not None and not same:
        raise InvalidArgument("masks", None, "not beside filtered logits")
    bits, constrained, log_mass = (
        (None, None, None) if masks is None else (masks.bits, masks.constrained, masks.log_mass)
    )
    block = _block(vocabulary)
    _reduce_kernel[(blocks, rows)](
        logits,
        filtered,
        temperature,
        alive,
        workspace,
        bits,
        constrained,
        vocabulary=vocabulary,
        words=0 if bits is None else bits.shape[1],
        same=same,
        block=block,
        pdl=pdl,
        launch_pdl=pdl,
    )
    _draw_kernel[(rows,)](
        logits,
        filtered,
        temperature,
        seeds,
        branches,
        positions,
        stop_ids,
        alive,
        step,
        workspace,
        token,
        stopping,
        token_ring,
        logprob_ring,
        constrained,
        log_mass,
        token_ring.stride(0),
        logprob_ring.stride(0),
        vocabulary=vocabulary,
        blocks=blocks,
        block_blocks=triton.next_power_of_2(blocks),
        stops=STOP_IDS,
        block=block,
        pdl=pdl,
        launch_pdl=pdl,
    )


def advance(alive: Tensor, stopping: Tensor, positions: Tensor, step: Tensor, *, pdl: bool = False) -> None:
    """End a step: living rows move on by one position, then stopping rows die, and the step counter grows.

    Args:
        alive: [B] int32, updated.
        stopping: [B] int32, from `sample`.
        positions: [B] int32, updated.
        step: [1] int32, updated.
        pdl: launch while the kernel before still runs.
    """
    rows = alive.shape[0]
    _advance_kernel[(1,)](
        alive, stopping, positions, step, rows, block=triton.next_power_of_2(rows), pdl=pdl, launch_pdl=pdl
    )


@triton.jit
def _reduce_kernel(
    logits, filtered, temperature, alive, workspace, bits, constrained,
    vocabulary: tl.constexpr,
    words: tl.constexpr,
    same: tl.constexpr,
    block: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    wait_for_previous(pdl)
    if tl.load(alive + row) != 0:
        warmth = tl.load(temperature + row)
        warmth = tl.where(warmth > 0, warmth, 1.0)
        column = tl.program_id(0) * block + tl.arange(0, block)
        at = row.to(tl.int64) * vocabulary + column
        raw = tl.load(logits + at, mask=column < vocabulary, other=-float("inf"))
        place = workspace + (row * tl.num_programs(0) + tl.program_id(0)) * _STATISTICS
        if bits is not None and tl.load(constrained + row) != 0:
            highest, total = _maximum_and_sum(raw, 1.0)
            tl.store(place + 4, highest)
            tl.store(place + 5, total)
            word = tl.load(bits + row.to(tl.int64) * words + column // 32, mask=column < vocabulary, other=0)
            forbidden = ((word >> (column % 32)) & 1) == 0
            raw = tl.where(forbidden, -float("inf"), raw)
            tl.store(logits + at, raw, mask=(column < vocabulary) & forbidden)
        chosen = raw
        if not same:
            chosen = tl.load(filtered + at, mask=column < vocabulary, other=-float("inf"))
        highest, total = _maximum_and_sum(chosen, warmth)
        tl.store(place, highest)
        tl.store(place + 1, total)
        highest, total = _maximum_and_sum(raw, 1.0)
        tl.store(place + 2, highest)
        tl.store(place + 3, total)


@triton.jit
def _maximum_and_sum(values, warmth):
    """The maximum, and the sum of exp((value - maximum) / warmth), which is 0 where all are -inf."""
    highest = tl.max(values, 0)
    base = tl.where(highest > -float("inf"), highest, 0.0)
    return highest, tl.sum(tl.exp((values - base) / warmth), 0)


@triton.jit
def _draw_kernel(
    logits, filtered, temperature, seeds, branches, positions, stop_ids, alive, step, workspace,
    token, stopping, token_ring, logprob_ring, constrained, log_mass,
    token_stride,
    logprob_stride,
    vocabulary: tl.constexpr,
    blocks: tl.constexpr,
    block_blocks: tl.constexpr,
    stops: tl.constexpr,
    block: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    wait_for_previous(pdl)
    place = tl.load(step)
    if tl.load(alive + row) != 0:
        warmth = tl.load(temperature + row)
        which = tl.arange(0, block_blocks)
        at = workspace + (row * blocks + which) * _STATISTICS
        start = row.to(tl.int64) * vocabulary
        if warmth > 0:
            noise = _uniform(tl.load(seeds + row), tl.load(branches + row), tl.load(positions + row))
            drawn = _draw(filtered + start, at, which, warmth, noise, vocabulary, blocks, block)
        else:
            drawn = _most_likely(filtered + start, at, which, vocabulary, blocks, block)
        chosen = tl.load(logits + start + drawn)
        log_sum = _log_sum(at + 2, which, blocks)
        logprob = chosen - log_sum
        if log_mass is not None:
            lost = 0.0
            if tl.load(constrained + row) != 0:
                lost = log_sum - _log_sum(at + 4, which, blocks)
            tl.store(log_mass + row, lost)
        stop = tl.load(stop_ids + row * stops + tl.arange(0, stops))
        tl.store(token + row, drawn)
        tl.store(stopping + row, tl.max((stop == drawn).to(tl.int32), 0))
        tl.store(token_ring + place * token_stride + row, drawn)
        tl.store(logprob_ring + place * logprob_stride + row, logprob)
    else:
        tl.store(stopping + row, 0)
        tl.store(token_ring + place * token_stride + row, -1)
        tl.store(logprob_ring + place * logprob_stride + row, 0.0)


@triton.jit
def _draw(
    logits, statistics, which, warmth, noise, vocabulary: tl.constexpr, blocks: tl.constexpr, block: tl.constexpr
):
    """The token at `noise`, in [0, 1), of the cumulative distribution: first its block, then its place in there."""
    highest = tl.load(statistics, mask=which < blocks, other=-float("inf"))
    sums = tl.load(statistics + 1, mask=which < blocks, other=0.0)
    shares = sums.to(tl.float64) * tl.exp((highest - tl.max(highest, 0)) / warmth).to(tl.float64)
    picked, rest = _invert(shares, which, noise)

    column = picked * block + tl.arange(0, block)
    values = tl.load(logits + column, mask=column < vocabulary, other=-float("inf"))
    masses = tl.exp((values - tl.max(values, 0)) / warmth).to(tl.float64)
    offset, _ = _invert(masses, tl.arange(0, block), rest)
    return picked * block + offset


@triton.jit
def _invert(masses, index, noise):
    """Where in the cumulative sum of `masses` (float64) a share `noise` of it falls, and how far into that mass.

    Only an index with a mass is returned, whatever rounding does.
    """
    cumulative = tl.cumsum(masses, 0)
    target = noise * tl.sum(masses, 0)
    last = tl.max(tl.where(masses > 0, index, 0), 0)
    past = (cumulative > target) & (masses > 0)
    found = tl.min(tl.where(past, index, last), 0)
    mass = tl.sum(tl.where(index == found, masses, 0.0), 0)
    before = tl.sum(tl.where(index < found, masses, 0.0), 0)
    return found, (target - before) / mass


@triton.jit
def _most_likely(logits, statistics, which, vocabulary: tl.constexpr, blocks: tl.constexpr, block: tl.constexpr):
    """The smallest id among the most likely."""
    highest = tl.load(statistics, mask=which < blocks, other=-float("inf"))
    best = tl.max(highest, 0)
    picked = tl.min(tl.where((highest == best) & (which < blocks), which, blocks - 1), 0)
    column = picked * block + tl.arange(0, block)
    values = tl.load(logits + column, mask=column < vocabulary, other=-float("inf"))
    return tl.min(tl.where((values == best) & (column < vocabulary), column, vocabulary - 1), 0)


@triton.jit
def _log_sum(statistics, which, blocks: tl.constexpr):
    """The log of the sum of exponentials over all blocks."""
    highest = tl.load(statistics, mask=which < blocks, other=-float("inf"))
    sums = tl.load(statistics + 1, mask=which < blocks, other=0.0)
    best = tl.max(highest, 0)
    return best + tl.log(tl.sum(sums * tl.exp(highest - best), 0))


@triton.jit
def _uniform(seed, branch, position):
    """The number in [0, 1) that `dendrite.engine.sampler.uniform` makes of the three keys."""
    state = _mix(seed.to(tl.uint64) + _GOLDEN)
    state = _mix(state ^ (branch.to(tl.uint64) * _GOLDEN + _GOLDEN))
    state = _mix(state ^ (position.to(tl.uint64) * _GOLDEN + _MIX1))
    return (state >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _mix(state):
    state = (state ^ (state >> 30)) * _MIX1
    state = (state ^ (state >> 27)) * _MIX2
    return state ^ (state >> 31)


@triton.jit
def _advance_kernel(alive, stopping, positions, step, rows, block: tl.constexpr, pdl: tl.constexpr):
    row = tl.arange(0, block)
    inside = row < rows
    wait_for_previous(pdl)
    living = tl.load(alive + row, mask=inside, other=0)
    stops = tl.load(stopping + row, mask=inside, other=0)
    position = tl.load(positions + row, mask=inside, other=0)
    tl.store(positions + row, position + living, mask=inside)
    tl.store(alive + row, living & (1 - stops), mask=inside)
    tl.store(step, tl.load(step) + 1)

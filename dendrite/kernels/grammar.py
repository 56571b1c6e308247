"""Taking away what grammars forbid, before sampling; `dendrite.grammar.masks` does the same on the host.

Works in place, on rows with a grammar only: a program of another row reads its flag and ends. What a row loses is
measured on the way, for the log-probabilities that the model alone would have given.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.kernels.pdl import wait_for_previous

_BLOCK = 1024  # tokens of a program
_STATISTICS = tl.constexpr(4)  # of a block: the maximum and the sum of exponentials before, and the same after


def mask_blocks(vocabulary: int) -> int:
    """Blocks of a row in the workspace of `mask_logits`."""
    return int(triton.cdiv(vocabulary, _BLOCK))


def mask_logits(
    logits: Tensor, bits: Tensor, constrained: Tensor, workspace: Tensor, log_mass: Tensor, *, pdl: bool = False
) -> None:
    """Set the logits of forbidden tokens to -inf, and tell what probability the rest has.

    Args:
        logits: [B, V] float32, changed where `constrained`.
        bits: [B, ceil(V / 32)] int32; bit t % 32 of word t // 32 allows token t. At least one is set in a row.
        constrained: [B] int32, 1 for rows with a grammar; the bits of the others are not read.
        workspace: [B, mask_blocks(V), 4] float32.
        log_mass: [B] float32, written: log of the probability, at temperature 1, of what is allowed; 0 without grammar.
        pdl: launch while the kernel before still runs.
    """
    rows, vocabulary = logits.shape
    words, blocks = bits.shape[1], mask_blocks(vocabulary)
    if words * 32 < vocabulary:
        raise InvalidArgument("bits", tuple(bits.shape), f"must have a bit for each of {vocabulary} tokens")
    _mask_kernel[(blocks, rows)](
        logits,
        bits,
        constrained,
        workspace,
        vocabulary=vocabulary,
        words=words,
        block=_BLOCK,
        pdl=pdl,
        launch_pdl=pdl,
    )
    _mass_kernel[(rows,)](
        workspace,
        constrained,
        log_mass,
        blocks=blocks,
        block_blocks=triton.next_power_of_2(blocks),
        pdl=pdl,
        launch_pdl=pdl,
    )


@triton.jit
def _mask_kernel(
    logits, bits, constrained, workspace,
    vocabulary: tl.constexpr,
    words: tl.constexpr,
    block: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    wait_for_previous(pdl)
    if tl.load(constrained + row) != 0:
        column = tl.program_id(0) * block + tl.arange(0, block)
        inside = column < vocabulary
        at = logits + row.to(tl.int64) * vocabulary + column
        raw = tl.load(at, mask=inside, other=-float("inf"))
        word = tl.load(bits + row.to(tl.int64) * words + column // 32, mask=inside, other=0)
        forbidden = ((word >> (column % 32)) & 1) == 0
        kept = tl.where(forbidden, -float("inf"), raw)
        tl.store(at, kept, mask=inside & forbidden)
        place = workspace + (row * tl.num_programs(0) + tl.program_id(0)) * _STATISTICS
        highest, total = _maximum_and_sum(raw)
        tl.store(place, highest)
        tl.store(place + 1, total)
        highest, total = _maximum_and_sum(kept)
        tl.store(place + 2, highest)
        tl.store(place + 3, total)


@triton.jit
def _maximum_and_sum(values):
    """The maximum, and the sum of exp(value - maximum), which is 0 where all are -inf."""
    highest = tl.max(values, 0)
    base = tl.where(highest > -float("inf"), highest, 0.0)
    return highest, tl.sum(tl.exp(values - base), 0)


@triton.jit
def _mass_kernel(
    workspace, constrained, log_mass,
    blocks: tl.constexpr,
    block_blocks: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    wait_for_previous(pdl)
    if tl.load(constrained + row) != 0:
        which = tl.arange(0, block_blocks)
        at = workspace + (row * blocks + which) * _STATISTICS
        tl.store(log_mass + row, _log_sum(at + 2, which < blocks) - _log_sum(at, which < blocks))
    else:
        tl.store(log_mass + row, 0.0)


@triton.jit
def _log_sum(statistics, inside):
    """The log of the sum of exponentials over all blocks."""
    highest = tl.load(statistics, mask=inside, other=-float("inf"))
    sums = tl.load(statistics + 1, mask=inside, other=0.0)
    best = tl.max(highest, 0)
    return best + tl.log(tl.sum(sums * tl.exp(highest - best), 0))

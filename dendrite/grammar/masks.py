"""Which tokens may come next, for many paths at once: computed on threads, and applied to logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from torch import Tensor

from dendrite.grammar.compiler import Bits
from dendrite.grammar.matcher import Matcher, State
from dendrite.grammar.walk import MaskTable, Walk


class MaskPool:
    """Threads that compute masks while the caller, or the GPU, does something else.

    All matchers of a family go to one thread, in one call that holds no Python lock. Paths that stand in the same state
    have one mask.
    """

    def __init__(self, threads: int, words: int) -> None:
        """Start no thread yet.

        Args:
            threads: how many there may be, as many as a grammar has families.
            words: int32 words of a mask.
        """
        self._words = words
        self._workers: list[tuple[ThreadPoolExecutor, LLExecutor] | None] = [None] * threads
        self._together: LLExecutor | None = None

    def request(self, matchers: Iterable[Matcher]) -> None:
        """Have the masks computed that are not there, nor on their way; `Matcher.bits` waits for them."""
        lacking = {m.state: None for m in matchers if m.state.bits is None and not m.closed}
        families: dict[int, list[State]] = {}
        for state in lacking:
            families.setdefault(state.family, []).append(state)
        for family, states in families.items():
            rows = np.empty((len(states), self._words), dtype=np.int32)
            work = [(state.settle(), row) for row, state in enumerate(states)]
            worker, executor = self._worker(family)
            pending = worker.submit(_fill, executor, work, rows)
            for row, state in enumerate(states):
                state.bits, state.pending = rows[row], pending

    def walk(self, matchers: Mapping[int, Matcher], masks: MaskTable, least_forced: int) -> Walk:
        """Move matchers on together, with all threads at work for each step; see `Walk`."""
        if self._together is None:
            self._together = LLExecutor(len(self._workers))
        return Walk(matchers, masks, self._together, least_forced)

    def close(self) -> None:
        """End the threads; they start again when they are needed."""
        for worker in self._workers:
            if worker is not None:
                worker[0].shutdown()
        self._workers = [None] * len(self._workers)
        self._together = None

    def _worker(self, family: int) -> tuple[ThreadPoolExecutor, LLExecutor]:
        at = family % len(self._workers)
        worker = self._workers[at]
        if worker is None:
            worker = self._workers[at] = ThreadPoolExecutor(1, thread_name_prefix="grammar"), LLExecutor(1)
        return worker


def _fill(executor: LLExecutor, work: list[tuple[LLMatcher, int]], rows: MaskTable) -> None:
    """Write the mask of every matcher into its row of `rows` [n, words]; one that fails is then in error."""
    executor.unsafe_compute_mask_ptr(work, rows.ctypes.data, rows.shape[1] * rows.itemsize, len(rows))


def allowed(bits: Sequence[Bits], vocabulary: int) -> Tensor:
    """[n, V] bool of n rows of packed bits."""
    packed = np.ascontiguousarray(np.stack(bits)).view(np.uint8)
    return torch.from_numpy(np.unpackbits(packed, axis=1, bitorder="little")[:, :vocabulary].view(np.bool_))


def masked(logits: Tensor, rows: Sequence[int], bits: Sequence[Bits]) -> Tensor:
    """A copy of `logits` [B, V] with what is not allowed in `rows`, by their bits, at minus infinity."""
    forbidden = torch.zeros(logits.shape, dtype=torch.bool)
    forbidden[list(rows)] = ~allowed(bits, logits.shape[1])
    return logits.masked_fill(forbidden.to(logits.device), -torch.inf)

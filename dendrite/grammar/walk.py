"""A batch's rows on their way through their grammars, a token each at a time, while the GPU runs that token.

    device   S ── F ─────────────────┐ S ── F ─────────────────┐ S ...
    host     wait │ consume, masks ┘     wait │ consume, masks ┘

S samples under the masks, F runs the sampled tokens through the model. The host's part is two calls for all rows
together, on threads that hold no lock of Python's; as long as it is shorter than F, grammars cost no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from dendrite.grammar.matcher import Matcher

MaskTable = npt.NDArray[np.int32]
"""[rows, words] int32: packed bits, as `dendrite.grammar.compiler.Bits`, for each row of a batch."""
_FEW = 256
"""Where bytes are forced, only what those begin with may come, and the rare token that is longer: no more than this."""


class Walk:
    """Moves matchers on and writes the masks of what may come next.

    A row leaves the walk when its document ends, when it has stopped for another reason, and when its lexer passes a
    limit. From then on nothing but the end may come, so that there is something to sample.

    Attributes:
        taken: by row, how many of its tokens are good; the last may be one that the lexer could not read.
        paused: whether some row has a run of forced tokens before it.
    """

    def __init__(
        self, matchers: Mapping[int, Matcher], masks: MaskTable, executor: LLExecutor, least_forced: int
    ) -> None:
        """Start where the matchers stand.

        Args:
            matchers: by row, at least one. Their masks must be there (`Matcher.bits`).
            masks: written, now and by every step.
            executor: its threads do the work.
            least_forced: the shortest run of forced tokens that is worth leaving the walk for.
        """
        self._masks, self._executor, self._least_forced = masks, executor, least_forced
        # Neighbours of a family go to one thread, which finds their lexer free.
        self._going = sorted(matchers.items(), key=lambda item: item[1].state.family)
        for row, matcher in self._going:
            masks[row] = matcher.bits
        used = masks[: max(matchers) + 1]
        self._wide = used.view(np.uint64) if used.shape[1] % 2 == 0 else used  # fewer and wider words count faster
        self.taken = dict.fromkeys(matchers, 0)
        self.paused = False

    def step(self, tokens: Sequence[int]) -> bool:
        """Take each row's token and write its next mask.

        Args:
            tokens: by row of the batch; negative where the row has stopped.

        Returns:
            Whether to go on: some row does, and none has a run of forced tokens before it.
        """
        self._consume(tokens)
        if not self._going:
            return False
        self._write_masks()
        self.paused = self._forced()
        return not self.paused

    @property
    def going(self) -> frozenset[int]:
        """Rows that stand at the end of their tokens, with a mask for the next."""
        return frozenset(row for row, _ in self._going)

    def finish(self) -> None:
        """Leave their masks to the matchers that go on."""
        kept = self._masks[[row for row, _ in self._going]]
        for (_, matcher), bits in zip(self._going, kept, strict=True):
            matcher.state.bits = bits

    def _consume(self, tokens: Sequence[int]) -> None:
        moves: list[tuple[LLMatcher, int]] = []
        moving: list[tuple[int, Matcher]] = []
        for row, matcher in self._going:
            token = tokens[row]
            self.taken[row] += token >= 0
            if token >= 0 and token not in matcher.compiled.eos_ids:
                moves.append((matcher.own(), token))
                moving.append((row, matcher))
                continue
            if token >= 0:
                matcher.advance(token)
            self._masks[row] = matcher.compiled.closed
        consumed = self._executor.consume_token_par(moves) if moves else []
        self._going = []
        for (row, matcher), (inner, _), good in zip(moving, moves, consumed, strict=True):
            matcher.taken += good
            if good and not inner.is_stopped():
                self._going.append((row, matcher))
            else:
                self._masks[row] = matcher.compiled.closed

    def _write_masks(self) -> None:
        work = [(matcher.state.inner, row) for row, matcher in self._going]
        table = self._masks
        self._executor.unsafe_compute_mask_ptr(work, table.ctypes.data, table.shape[1] * table.itemsize, len(table))
        failed = [place for place, (inner, _) in zip(self._going, work, strict=True) if inner.is_error()]
        for row, matcher in failed:
            table[row] = matcher.compiled.closed
            self._going.remove((row, matcher))

    def _forced(self) -> bool:
        choices = np.bitwise_count(self._wide).sum(axis=1, dtype=np.int32).tolist()
        few = [matcher for row, matcher in self._going if choices[row] <= _FEW]
        return any(len(matcher.forced(self._least_forced)) >= self._least_forced for matcher in few)

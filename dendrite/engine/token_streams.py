"""Tokens of running generations, handed out as they come."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from dendrite.engine.generation import Generation
from dendrite.search.backend import Branch, TopLogprobs

_PIECES_PER_S = 400.0
"""Most pieces that all streams together bring, first ones aside: each costs its reader some processor time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that have come since the piece before, and whether any will follow."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...]
    last: bool


class TokenStream:
    """The tokens of one generation: the first at once, then those of `every_s` seconds at a time, or of longer."""

    def __init__(self, generation: Generation, every_s: float) -> None:
        self.generation, self._every_s = generation, every_s
        self._seen, self._cut_at = 0, -math.inf
        self._ended = generation.done
        self._waiter: asyncio.Future[Piece] | None = None
        self._ready: Piece | None = None
        self._error: Exception | None = None

    async def next(self) -> Piece:
        """The next piece; waits for it. Raises what the engine failed with."""
        if self._error is not None:
            raise self._error
        if self._ended:
            return self._cut(time.monotonic())
        self._waiter = asyncio.get_running_loop().create_future()
        return await self._waiter

    def collect(self, now: float, least_s: float) -> bool:
        """Take up what a step has brought, which is to be handed out if this returns True.

        Args:
            now: monotonic seconds.
            least_s: the shortest time between two pieces, if that is above the stream's own.
        """
        generation = self.generation
        self._ended = generation.done
        if self._waiter is None or self._waiter.done():
            return False
        if not self._ended and (
            now < self._cut_at + max(self._every_s, least_s) or len(generation.node.tokens) == self._seen
        ):
            return False
        self._ready = self._cut(now)
        return True

    def hand_out(self) -> None:
        """Let the reader go on with what was taken up."""
        piece, self._ready = self._ready, None
        if self._waiter is not None and not self._waiter.done() and piece is not None:
            self._waiter.set_result(piece)

    def fail(self, error: Exception) -> None:
        """Have the reader raise an error: now if it waits, else when it asks again."""
        self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
            self._waiter.exception()  # seen: a reader that was cancelled will not ask

    def _cut(self, now: float) -> Piece:
        node, seen = self.generation.node, self._seen
        self._seen, self._cut_at = len(node.tokens), now
        top = tuple(self.generation.top_logprobs[seen:])
        return Piece(tuple(node.tokens[seen:]), tuple(node.logprobs[seen:]), top, self._ended)


class TokenStreams:
    """All streams of one engine. What they hand out is taken between two steps, and read while the next one runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[TokenStream, None] = {}
        self._ready: list[TokenStream] = []

    def open(self, generation: Generation, every_s: float) -> TokenStream:
        """Follow a generation; between two steps only."""
        stream = TokenStream(generation, every_s)
        self._open[stream] = None
        return stream

    def close(self, stream: TokenStream) -> None:
        """Follow it no more. Idempotent."""
        self._open.pop(stream, None)

    def collect(self) -> None:
        """Take up what a step has brought, before the next one begins."""
        now, least_s = self._clock(), len(self._open) / _PIECES_PER_S
        self._ready += [stream for stream in self._open if stream.collect(now, least_s)]

    def hand_out(self) -> None:
        """Let readers go on with what was taken up."""
        ready, self._ready = self._ready, []
        for stream in ready:
            stream.hand_out()

    def fail(self, error: Exception) -> list[Generation]:
        """Fail all readers; returns the generations that nobody follows any more."""
        streams, self._open = list(self._open), {}
        for stream in streams:
            stream.fail(error)
        return [stream.generation for stream in streams]


def piece_branch(generation: Generation, piece: Piece) -> Branch:
    """What a backend yields for a piece."""
    node = generation.node
    return Branch(
        node=node,
        tokens=piece.tokens,
        text="",
        logprobs=piece.logprobs,
        value=node.value if piece.last else None,
        finish_reason=(generation.finish_reason if piece.last else None) or "length",
        pages=len(node.pages),
        top_logprobs=piece.top_logprobs,
        error=generation.error if piece.last else None,
    )

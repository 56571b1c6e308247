"""Text that streams from any backend: a generation in short spans, each an expansion of the one before.

The noise of sampling is keyed by (seed, branch, position), so the spans hold the very tokens that one long expansion
would. That also makes a stream outlive the worker it runs on: the cluster rebuilds the last span's node elsewhere, and
the next span continues there.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from dendrite.config import MAX_SEED, SamplingParams
from dendrite.errors import ContextOverflow
from dendrite.search.backend import Backend, Branch, NodeRef, StreamingBackend
from serve_apps.stops import Item
from serve_apps.writer import TextWriter

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that the choices of one request, and of requests with neighbouring seeds, draw different noise."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long spans are: one token, then twice as many each time, up to what takes `seconds`, and to `most` tokens.

    A span costs a message to the worker and a fork there, so one of `least` tokens may take longer than `seconds`.
    """

    seconds: float = 0.1
    most: int = 64
    least: int = 8

    def next(self, tokens: int, took_s: float) -> int:
        """Tokens of the span after one of `tokens` that took so long."""
        fit = int(self.seconds * tokens / max(took_s, 1e-9))
        return max(1, min(2 * tokens, max(fit, self.least), self.most))


def choice_seed(seed: int | None, index: int) -> int:
    """The seed of one choice of a request; None draws one."""
    if seed is None:
        return secrets.randbelow(MAX_SEED)
    return seed if index == 0 else (seed + index * _SEED_STRIDE) & MAX_SEED


async def spans(
    backend: Backend, parent: NodeRef, params: SamplingParams, pace: Pace | None
) -> AsyncGenerator[Branch, None]:
    """Generate below `parent`, yielding each span's node, a child of the one before; all are the caller's to release.

    The last one has a finish reason other than "length", or brings the tokens to `params.max_tokens`, or is the last
    that the context has room for. Without a pace it is the only one.
    """
    node, left = parent, params.max_tokens
    length = left if pace is None else 1
    while left:
        began = time.monotonic()
        asked = min(length, left)
        update = {"max_tokens": asked}
        if params.grammar is not None:
            update["grammar_tokens"] = (params.grammar_tokens or 0) + params.max_tokens - left
        try:
            [branch] = await backend.expand(node, 1, params.model_copy(update=update))
        except ContextOverflow:
            if node is parent:
                raise
            return
        yield branch
        if branch.error is not None:
            raise branch.error
        if branch.finish_reason != "length" or len(branch.tokens) < asked or pace is None:
            return
        node, left = branch.node, left - asked
        length = pace.next(asked, time.monotonic() - began)


def written(
    backend: Backend, parent: NodeRef, params: SamplingParams, pace: Pace | None
) -> AsyncGenerator[Branch, None]:
    """Generate below `parent` as `spans` does, but on one node where the backend can hand it out while it grows."""
    if pace is not None and isinstance(backend, StreamingBackend):
        return backend.stream(parent, params, pace.seconds)
    return spans(backend, parent, params, pace)


class Releases:
    """Gives nodes up in the background, so that a cancelled caller need not wait to leave nothing behind."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._tasks: set[asyncio.Task[None]] = set()

    def release(self, *nodes: NodeRef, subtree: bool = False) -> None:
        """Begin to give nodes up."""
        for node in nodes:
            task = asyncio.ensure_future(self._backend.release(node, subtree=subtree))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a worker that is lost has nothing left to release

    async def settle(self) -> None:
        """Return once all that was begun is done."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def write(
    backend: Backend, parent: NodeRef, params: SamplingParams, writer: TextWriter, pace: Pace | None, releases: Releases
) -> AsyncGenerator[Item, None]:
    """Generate one choice below `parent` as items of text; nothing is held when the iterator ends or is closed."""
    last: NodeRef | None = None
    try:
        async with aclosing(written(backend, parent, params, pace)) as branches:
            async for branch in branches:
                if last is not None and last != branch.node:
                    releases.release(last)  # its child reads it, and needs no holder for that
                last = branch.node
                for item in writer.take(branch):
                    yield item
                if branch.error is not None:
                    raise branch.error
                if writer.stopped:
                    break
        for item in writer.end():
            yield item
    finally:
        if last is not None:
            releases.release(last)

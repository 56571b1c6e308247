"""Many callers, one engine: the `Backend` verbs on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from dendrite.config import SamplingParams
from dendrite.engine.branches import branch_of
from dendrite.engine.engine import Engine
from dendrite.engine.generation import Compute, Generation, raise_first
from dendrite.engine.mailbox import Mailbox
from dendrite.engine.stepper import StepResult
from dendrite.engine.token_streams import TokenStream, TokenStreams, piece_branch
from dendrite.errors import Cancelled, InvalidArgument
from dendrite.kv.node import Node
from dendrite.search.backend import BackendStats, Branch, NodeRef, TopLogprobs

T = TypeVar("T")
_YIELDS = 4
"""Turns of the event loop between two steps: enough for a finished expansion to reach its search through a task and a
wait, and for the search's next expansion to join the next step."""


class AsyncEngine:
    """Serves concurrent callers of one event loop from one engine; their work joins one running batch.

    Steps run inline on the loop (deterministic, no thread), or with `threaded` on a thread of their own, so that the
    loop stays responsive. Calls that arrive while a step runs take effect right after it.

    Implements `dendrite.search.backend.StreamingBackend`; its node references are `Node` objects.
    """

    def __init__(self, engine: Engine, *, threaded: bool = False) -> None:
        self.engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine") if threaded else None
        self._mailbox = Mailbox()
        self._waiters: dict[Generation | Compute, asyncio.Future[None]] = {}
        self._streams = TokenStreams()
        self._pump: asyncio.Task[None] | None = None

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> Node:
        """Compute a prompt and return its root."""
        submit = partial(self.engine.submit_prefill, prompt, seed=seed)
        root, job = await self._mailbox.call(submit, undo=lambda made: made[0].release())
        if job is not None:
            try:
                await self._finish([job])
            except BaseException:
                self._mailbox.post(root.release)
                raise
        return root

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        """Fork `node` n times and decode all children; cancelling the caller releases them."""
        parent = _node(node)
        submit = partial(self._fork_and_submit, parent, n, params)
        kids, generations = await self._mailbox.call(submit, undo=lambda made: self._abandon(*made))
        try:
            await self._finish(generations)
        except BaseException:
            self._mailbox.post(lambda: self._abandon(kids, generations))
            raise
        found = [tuple(generation.top_logprobs) for generation in generations]
        return [self._branch(kid, top) for kid, top in zip(kids, found, strict=True)]

    async def stream(self, node: NodeRef, params: SamplingParams, every_s: float) -> AsyncGenerator[Branch, None]:
        """Fork `node` once and decode the child, yielding it again and again with the tokens that are new."""
        parent = _node(node)

        def submit() -> TokenStream:
            _, [generation] = self._fork_and_submit(parent, 1, params)
            return self._streams.open(generation, every_s)

        def abandon(stream: TokenStream) -> None:
            self._streams.close(stream)
            self._abandon([stream.generation.node], [stream.generation])

        stream = await self._mailbox.call(submit, undo=abandon)
        generation, given = stream.generation, False
        self._ensure_pump()
        try:
            while True:
                piece = await stream.next()
                if piece.last:
                    raise_first([generation])
                given = True
                yield piece_branch(generation, piece)
                if piece.last:
                    return
        finally:
            self._streams.close(stream)
            self._mailbox.post(partial(self._abandon, [] if given else [generation.node], [generation]))

    async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The token ids of a text, with those that begin a sequence if `special`."""
        return tuple(self.engine.token_ids(text, "text", special=special))

    async def append(self, node: NodeRef, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Fork `node` once a continuation and write it there; cancelling the caller releases the children."""
        parent = _node(node)
        given = [self.engine.token_ids(tokens, "continuations") for tokens in continuations]
        submit = partial(self._fork_and_write, parent, given)
        probe, written = await self._mailbox.call(
            submit, undo=lambda made: self._abandon([kid for kid, _ in made[1]], ())
        )
        kids = [kid for kid, _ in written]
        try:
            await self._finish([probe])
            # At once, for what holds the probe's hidden state may be used for another node's in the next steps.
            firsts = await self._mailbox.call(lambda: [self.engine.first_score(probe, tokens) for tokens in given])
            await self._finish([job for _, job in written])
            for (kid, job), first in zip(written, firsts, strict=True):
                kid.logprobs.extend([*first, *job.logprobs])
                kid.finish_reason = "given"
                kid.value = await self.value(kid) if self.engine.has_value_head else None
        except BaseException:
            self._mailbox.post(lambda: self._abandon(kids, ()))
            raise
        return [self._branch(kid) for kid in kids]

    async def score(self, node: NodeRef, tokens: Sequence[int]) -> list[float]:
        """Natural-log probability of each of `tokens` after `node`."""
        parent = _node(node)
        tokens = self.engine.token_ids(tokens, "tokens")
        probe = await self._mailbox.call(lambda: self.engine.submit_probe(parent))
        await self._finish([probe])
        scores = await self._mailbox.call(lambda: self.engine.first_score(probe, tokens))
        if len(tokens) == 1:
            return scores
        submit = partial(self.engine.submit_score, parent, tokens)
        child, job = await self._mailbox.call(submit, undo=lambda made: made[0].release())
        try:
            await self._finish([job])
        finally:
            self._mailbox.post(child.release)
        return scores + job.logprobs

    async def value(self, node: NodeRef) -> float | None:
        """The value head's estimate at `node`; None without a value head."""
        parent = _node(node)
        probe = await self._mailbox.call(lambda: self.engine.submit_probe(parent))
        await self._finish([probe])
        return await self._mailbox.call(lambda: self.engine.probed_value(probe))

    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        """Give the node up (and all below it); idempotent."""
        target = _node(node)
        await self._mailbox.call(lambda: target.release(subtree=subtree))

    async def stats(self) -> BackendStats:
        """Totals of the engine."""
        seen = await self._mailbox.call(self.engine.stats)
        return BackendStats(
            prefill_tokens=seen.prefill_tokens,
            recomputed_tokens=seen.recomputed_tokens,
            decode_tokens=seen.decode_tokens,
            cached_tokens=seen.cached_tokens,
            forks=seen.forks,
            pages_held=seen.pages_held,
            shared_ratio=seen.shared_ratio,
            page_tokens=seen.page_tokens,
            page_bytes=seen.page_bytes,
        )

    async def run(self, call: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """Run something on the engine between two steps; `undo` takes it back if the caller is cancelled meanwhile."""
        return await self._mailbox.call(call, undo)

    async def aclose(self) -> None:
        """Cancel what has not ended and stop stepping; the engine stays usable."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._mailbox.drain()
        for request in list(self._waiters):
            if isinstance(request, Generation):
                self.engine.cancel(request)
        self._fail_all(Cancelled("the engine was closed"))
        if self._thread is not None:
            self._thread.shutdown()

    def _branch(self, node: Node, top_logprobs: tuple[TopLogprobs, ...] = ()) -> Branch:
        tokenizer = self.engine.tokenizer
        readable = tokenizer is not None and tokenizer.available
        return branch_of(node, readable=readable, top_logprobs=top_logprobs)

    # ---------------------------------------------------------------- between steps

    def _fork_and_submit(self, parent: Node, n: int, params: SamplingParams) -> tuple[list[Node], list[Generation]]:
        kids = parent.fork(n)
        try:
            return kids, self.engine.submit(kids, params)
        except BaseException:
            self._abandon(kids, ())
            raise

    def _fork_and_write(
        self, parent: Node, given: Sequence[Sequence[int]]
    ) -> tuple[Generation, list[tuple[Node, Compute]]]:
        """A probe of `parent`, for the first tokens, and a child and its job a continuation."""
        probe = self.engine.submit_probe(parent)
        written: list[tuple[Node, Compute]] = []
        try:
            written.extend(self.engine.submit_append(parent, tokens) for tokens in given)
        except BaseException:
            self._abandon([kid for kid, _ in written], ())
            raise
        return probe, written

    def _abandon(self, kids: Sequence[Node], generations: Sequence[Generation]) -> None:
        for generation in generations:
            self.engine.cancel(generation)
        for kid in kids:
            kid.release()

    # ---------------------------------------------------------------- steps

    async def _finish(self, requests: Sequence[Generation | Compute]) -> None:
        """Wait until all have ended; raise the first error among them."""
        loop = asyncio.get_running_loop()
        futures = {request: loop.create_future() for request in requests if not request.done}
        self._waiters.update(futures)
        self._ensure_pump()
        try:
            for future in futures.values():
                await future
        finally:
            for request in futures:
                self._waiters.pop(request, None)
        raise_first(requests)

    def _ensure_pump(self) -> None:
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run_steps())

    async def _run_steps(self) -> None:
        try:
            while self.engine.has_work:
                self._settle(await self._step())
                self._streams.collect()
                for _ in range(_YIELDS):
                    await asyncio.sleep(0)
            self._streams.hand_out()
        except Exception as error:
            self._fail_all(error)

    async def _step(self) -> StepResult:
        if self._thread is None:
            self._streams.hand_out()
            return self.engine.step()
        self._mailbox.stepping = True
        step = asyncio.get_running_loop().run_in_executor(self._thread, self.engine.step)
        self._streams.hand_out()  # now, so that what readers do with it takes the engine no time
        try:
            return await asyncio.shield(step)
        finally:
            if not step.done():  # cancelled: the thread still works on the engine
                await asyncio.wait([step])
            self._mailbox.stepping = False
            self._mailbox.drain()

    def _settle(self, result: StepResult) -> None:
        ended: list[Generation | Compute] = [*result.generations, *result.computes]
        for request in ended:
            future = self._waiters.pop(request, None)
            if future is not None and not future.done():
                future.set_result(None)

    def _fail_all(self, error: Exception) -> None:
        waiters, self._waiters = self._waiters, {}
        for future in waiters.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: a caller that was cancelled will not ask
        for generation in self._streams.fail(error):
            self.engine.cancel(generation)


def _node(ref: NodeRef) -> Node:
    if not isinstance(ref, Node):
        raise InvalidArgument("node", ref, "a node of this engine")
    return ref

"""Many callers, one engine: the `Backend` verbs on an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from dendrite.config import SamplingParams
from dendrite.engine.branches import branch_of
from dendrite.engine.engine import Engine
from dendrite.engine.generation import Compute, Generation, raise_first
from dendrite.engine.stepper import StepResult
from dendrite.errors import Cancelled, InvalidArgument
from dendrite.kv.node import Node
from dendrite.search.backend import BackendStats, Branch, NodeRef

T = TypeVar("T")
_YIELDS = 4
"""Turns of the event loop between two steps: enough for a finished expansion to reach its search through a task and a
wait, and for the search's next expansion to join the next step."""


class AsyncEngine:
    """Serves concurrent callers of one event loop from one engine; their work joins one running batch.

    Steps run inline on the loop (deterministic, no thread), or with `threaded` on a thread of their own, so that the
    loop stays responsive. Calls that arrive while a step runs take effect right after it.

    Implements `dendrite.search.backend.Backend`; its node references are `Node` objects.
    """

    def __init__(self, engine: Engine, *, threaded: bool = False) -> None:
        self.engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine") if threaded else None
        self._stepping = False
        self._mailbox: deque[Callable[[], None]] = deque()
        self._waiters: dict[Generation | Compute, asyncio.Future[None]] = {}
        self._pump: asyncio.Task[None] | None = None

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> Node:
        """Compute a prompt and return its root."""
        submit = partial(self.engine.submit_prefill, prompt, seed=seed)
        root, job = await self._call(submit, undo=lambda made: made[0].release())
        if job is not None:
            try:
                await self._finish([job])
            except BaseException:
                self._post(root.release)
                raise
        return root

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        """Fork `node` n times and decode all children; cancelling the caller releases them."""
        parent = _node(node)
        submit = partial(self._fork_and_submit, parent, n, params)
        kids, generations = await self._call(submit, undo=lambda made: self._abandon(*made))
        try:
            await self._finish(generations)
        except BaseException:
            self._post(lambda: self._abandon(kids, generations))
            raise
        return [self._branch(kid) for kid in kids]

    async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The token ids of a text, with those that begin a sequence if `special`."""
        return tuple(self.engine.token_ids(text, "text", special=special))

    async def append(self, node: NodeRef, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Fork `node` once a continuation and write it there; cancelling the caller releases the children."""
        parent = _node(node)
        given = [self.engine.token_ids(tokens, "continuations") for tokens in continuations]
        submit = partial(self._fork_and_write, parent, given)
        probe, written = await self._call(submit, undo=lambda made: self._abandon([kid for kid, _ in made[1]], ()))
        kids = [kid for kid, _ in written]
        try:
            await self._finish([probe])
            # At once, for what holds the probe's hidden state may be used for another node's in the next steps.
            firsts = await self._call(lambda: [self.engine.first_score(probe, tokens) for tokens in given])
            await self._finish([job for _, job in written])
            for (kid, job), first in zip(written, firsts, strict=True):
                kid.logprobs.extend([*first, *job.logprobs])
                kid.finish_reason = "given"
                kid.value = await self.value(kid) if self.engine.has_value_head else None
        except BaseException:
            self._post(lambda: self._abandon(kids, ()))
            raise
        return [self._branch(kid) for kid in kids]

    async def score(self, node: NodeRef, tokens: Sequence[int]) -> list[float]:
        """Natural-log probability of each of `tokens` after `node`."""
        parent = _node(node)
        tokens = self.engine.token_ids(tokens, "tokens")
        probe = await self._call(lambda: self.engine.submit_probe(parent))
        await self._finish([probe])
        scores = await self._call(lambda: self.engine.first_score(probe, tokens))
        if len(tokens) == 1:
            return scores
        submit = partial(self.engine.submit_score, parent, tokens)
        child, job = await self._call(submit, undo=lambda made: made[0].release())
        try:
            await self._finish([job])
        finally:
            self._post(child.release)
        return scores + job.logprobs

    async def value(self, node: NodeRef) -> float | None:
        """The value head's estimate at `node`; None without a value head."""
        parent = _node(node)
        probe = await self._call(lambda: self.engine.submit_probe(parent))
        await self._finish([probe])
        return await self._call(lambda: self.engine.probed_value(probe))

    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        """Give the node up (and all below it); idempotent."""
        target = _node(node)
        await self._call(lambda: target.release(subtree=subtree))

    async def stats(self) -> BackendStats:
        """Totals of the engine."""
        seen = await self._call(self.engine.stats)
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
        return await self._call(call, undo)

    async def aclose(self) -> None:
        """Cancel what has not ended and stop stepping; the engine stays usable."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._drain_mailbox()
        for request in list(self._waiters):
            if isinstance(request, Generation):
                self.engine.cancel(request)
        self._fail_all(Cancelled("the engine was closed"))
        if self._thread is not None:
            self._thread.shutdown()

    def _branch(self, node: Node) -> Branch:
        tokenizer = self.engine.tokenizer
        return branch_of(node, readable=tokenizer is not None and tokenizer.available)

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

    async def _call(self, call: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """Run `call` now if the engine is between steps, else right after the step that runs.

        A caller that is cancelled while it waits never learns what the call made, so `undo` takes it back.
        """
        if not self._stepping:
            return call()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        results: list[T] = []

        def deliver() -> None:
            try:
                results.append(call())
            except BaseException as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(None)

        self._mailbox.append(deliver)
        try:
            await answer
        except asyncio.CancelledError:
            if undo is not None:
                self._post(lambda: _each(undo, results))  # runs after `deliver`, which may still be waiting too
            raise
        return results[0]

    def _post(self, call: Callable[[], None]) -> None:
        """Like `_call`, for clean-up that nobody waits for."""
        if self._stepping:
            self._mailbox.append(call)
        else:
            call()

    def _drain_mailbox(self) -> None:
        while self._mailbox:
            self._mailbox.popleft()()

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
                for _ in range(_YIELDS):
                    await asyncio.sleep(0)
        except Exception as error:
            self._fail_all(error)

    async def _step(self) -> StepResult:
        if self._thread is None:
            return self.engine.step()
        self._stepping = True
        step = asyncio.get_running_loop().run_in_executor(self._thread, self.engine.step)
        try:
            return await asyncio.shield(step)
        finally:
            if not step.done():  # cancelled: the thread still works on the engine
                await asyncio.wait([step])
            self._stepping = False
            self._drain_mailbox()

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


def _each(call: Callable[[T], None], values: Sequence[T]) -> None:
    for value in values:
        call(value)


def _node(ref: NodeRef) -> Node:
    if not isinstance(ref, Node):
        raise InvalidArgument("node", ref, "a node of this engine")
    return ref

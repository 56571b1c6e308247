"""The work of a completion: prompts prefilled once each, choices forked from them, and all of it given up after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dendrite.config import SamplingParams
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.backend import NodeRef
from serve_apps.decoding import Releases, choice_seed, write
from serve_apps.merging import merged
from serve_apps.schemas import Usage
from serve_apps.services import Services
from serve_apps.stops import Item
from serve_apps.writer import TextWriter


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: `n` choices of each prompt, sampled by `params` (its seed aside, which is `seed`)."""

    prompts: Sequence[Sequence[int]]
    n: int
    params: SamplingParams
    seed: int | None
    by_token: bool


class Work:
    """One order under way: between `open` and `close` it holds the prompts and a reservation of KV."""

    def __init__(self, services: Services, releases: Releases, owner: str, order: Order) -> None:
        self._services, self._releases, self._owner, self._order = services, releases, owner, order
        choices = len(order.prompts) * order.n
        if choices > services.settings.max_choices:
            raise InvalidArgument("n", order.n, f"at most {services.settings.max_choices} choices, over all prompts")
        self.writers = [TextWriter(services.codec, order.params.stop, by_token=order.by_token) for _ in range(choices)]
        """One for each choice, prompt by prompt."""
        self._began = time.monotonic()
        self._stack = AsyncExitStack()
        self._roots: list[NodeRef] = []

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return Usage.of(sum(map(len, self._order.prompts)), sum(writer.generated for writer in self.writers))

    async def open(self) -> None:
        """Compute the prompts.

        Raises:
            ContextOverflow: one leaves no room for a token.
            HttpError: the key's limits are reached.
        """
        order, accounts, limit = self._order, self._services.accounts, self._services.codec.max_context
        for prompt in order.prompts:
            if len(prompt) >= limit:
                raise ContextOverflow(len(prompt) + 1, limit)
        kv_bytes = self._kv_bytes()
        await accounts.admit(self._owner, kv_bytes)
        self._stack.push_async_callback(self._settle, kv_bytes)
        try:
            for prompt in order.prompts:
                root = await self._services.backend.prefill(prompt)
                self._roots.append(root)
        except BaseException:
            await self._stack.aclose()
            raise

    async def close(self) -> None:
        """Give everything up, and account for it. Idempotent."""
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def items(self) -> AsyncGenerator[tuple[int, Item | None], None]:
        """Items of all choices as they come, and None for a choice that has ended."""
        sources = [self._choice(index, stream=True) for index in range(len(self.writers))]
        async with aclosing(merged(sources)) as items:
            first = True
            async for index, item in items:
                if first:
                    self._services.metrics.first_token.observe(time.monotonic() - self._began)
                first = False
                yield index, item

    async def all(self) -> list[list[Item]]:
        """The items of every choice, once all have ended."""
        whole: list[list[Item]] = [[] for _ in self.writers]
        sources = [self._choice(index, stream=False) for index in range(len(self.writers))]
        async with aclosing(merged(sources)) as items:
            async for index, item in items:
                if item is not None:
                    whole[index].append(item)
        return whole

    def _choice(self, index: int, *, stream: bool) -> AsyncGenerator[Item, None]:
        order = self._order
        root = self._roots[index // order.n]
        params = order.params.model_copy(update={"seed": choice_seed(order.seed, index)})
        pace = self._services.pace if stream else None
        return write(self._services.backend, root, params, self.writers[index], pace, self._releases)

    def _kv_bytes(self) -> int:
        order, limit = self._order, self._services.codec.max_context
        tokens = sum(
            len(prompt) + order.n * min(order.params.max_tokens, limit - len(prompt)) for prompt in order.prompts
        )
        return tokens * self._services.kv_bytes_per_token

    async def _settle(self, kv_bytes: int) -> None:
        self._releases.release(*self._roots)
        usage, metrics = self.usage, self._services.metrics
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.tokens.inc(usage.completion_tokens)
        # Shielded: the books must balance also where the client has gone.
        await asyncio.shield(self._services.accounts.settle(self._owner, kv_bytes, usage.total_tokens))

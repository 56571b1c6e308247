"""The client for code with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from dendrite.client import calls
from dendrite.client.calls import Call, EventParser, Prompt
from dendrite.client.replies import Event, Node, Search, Tree


class AsyncClient:
    """A connection to a server. Use as a context manager, or `aclose`.

    Raises:
        RequestFailed: by all methods, what the server refuses.
        httpx.TransportError: it cannot be reached, after a few tries.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 30.0) -> None:
        """Connect when first used.

        Args:
            url: of the server, such as "http://127.0.0.1:8000".
            api_key: sent with every request.
            timeout_s: for a connection to be made; answers take as long as they take.
        """
        self._http = httpx.AsyncClient(**calls.http_options(url, api_key, timeout_s))

    async def tree(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        ttl_s: float = 60.0,
    ) -> AsyncTree:
        """Prefill a prompt, or a conversation, as the root of a tree that lives for `ttl_s` seconds unless renewed."""
        return AsyncTree(self, Tree.model_validate(await self.send(calls.tree_call(prompt, messages, ttl_s))))

    async def search(self, task: Mapping[str, Any], *, wait: bool = True, **settings: Any) -> Search:
        """Search for an answer; `settings` are the fields of `POST /v1/search`. Without `wait`, only begin."""
        return Search.model_validate(await self.send(calls.search_call(task, settings, wait=wait)))

    async def get_search(self, id: str) -> Search:
        """How a search stands."""
        return Search.model_validate(await self.send(Call("GET", f"/v1/searches/{id}")))

    async def cancel_search(self, id: str) -> Search:
        """Cancel a search at once."""
        return Search.model_validate(await self.send(Call("DELETE", f"/v1/searches/{id}")))

    def watch_search(self, id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """The events of a search's trace; a stream that breaks is taken up again."""
        return self.follow(f"/v1/searches/{id}/events", after)

    async def branch_search(self, id: str, node: int, n: int = 1, *, temperature: float = 1.0) -> list[int]:
        """Make more children of a node by hand; their numbers."""
        call = Call.post(f"/v1/searches/{id}/nodes/{node}/branch", n=n, temperature=temperature)
        nodes: list[int] = (await self.send(call))["nodes"]
        return nodes

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def send(self, call: Call) -> Any:
        """Make a call, again where nothing or "later" comes back; its answer's JSON."""
        attempt = 0
        while True:
            try:
                response = await self._http.request(call.method, call.path, **call.options())
            except httpx.TransportError:
                if (wait := calls.pause(attempt, None)) is None:
                    raise
            else:
                if (wait := None if response.is_success else calls.pause(attempt, response)) is None:
                    calls.check(response)
                    return response.json()
            attempt += 1
            await asyncio.sleep(wait)

    async def follow(self, path: str, after: int) -> AsyncIterator[Event]:
        """Events of a log after the one of id `after`, to the end; taken up again where the stream breaks."""
        attempt = 0
        while True:
            parser = EventParser()  # an event that a stream broke off in comes again as a whole
            try:
                async with self._http.stream("GET", path, params={"after": after}) as response:
                    if not response.is_success:
                        await response.aread()
                        calls.check(response)
                    async for line in response.aiter_lines():
                        for event in parser.push(line):
                            after, attempt = event.id, 0
                            yield event
                parser.check_ended()
                return
            except httpx.TransportError:
                if (wait := calls.pause(attempt, None)) is None:
                    raise
            attempt += 1
            await asyncio.sleep(wait)


class AsyncTree:
    """A tree on the server. As a context manager it is deleted at the end."""

    def __init__(self, client: AsyncClient, made: Tree) -> None:
        self._client, self._path = client, f"/v1/trees/{made.id}"
        self.id, self.root = made.id, made.root

    async def view(self) -> Tree:
        """The whole tree."""
        return Tree.model_validate(await self._client.send(Call("GET", self._path)))

    async def fork(self, node: int, n: int = 1, *, at: int | None = None) -> list[int]:
        """Make children of a node, after `at` of its own tokens or at its end; their numbers."""
        reply = await self._client.send(Call.post(f"{self._path}/nodes/{node}/fork", n=n, at=at))
        return [each["id"] for each in reply["data"]]

    async def generate(self, nodes: Sequence[int], **sampling: Any) -> list[Node]:
        """Extend nodes as one batch; `sampling` are the fields of `POST …/generate`."""
        reply = await self._client.send(Call.post(f"{self._path}/generate", nodes=list(nodes), **sampling))
        return [Node.model_validate(each) for each in reply["data"]]

    async def score(self, node: int, continuations: Sequence[Prompt]) -> list[list[float]]:
        """Natural-log probabilities of the tokens of continuations."""
        scores: list[list[float]] = (await self._client.send(calls.score_call(self._path, node, continuations)))[
            "scores"
        ]
        return scores

    async def renew(self, ttl_s: float = 60.0) -> None:
        """Have the tree live so many seconds from now."""
        await self._client.send(Call.post(f"{self._path}/lease", ttl_s=ttl_s))

    async def pin(self, node: int, ttl_s: float = 60.0) -> None:
        """Have the KV of a node's path stay so long, also past the tree."""
        await self._client.send(Call.post(f"{self._path}/nodes/{node}/pin", ttl_s=ttl_s))

    async def release(self, node: int, *, subtree: bool = False) -> None:
        """Give up a node, with `subtree` all below it."""
        await self._client.send(Call("DELETE", f"{self._path}/nodes/{node}", query={"subtree": subtree}))

    async def delete(self) -> None:
        """Give up the tree."""
        await self._client.send(Call("DELETE", self._path))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.delete()

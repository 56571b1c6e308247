"""Random requests to a server, some of which their clients leave in the middle."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from benchmarks.soak_tally import Operation
from dendrite.search.tasks.countdown import Countdown

MODEL = "countdown"
_HOPELESS = {"kind": "countdown", "numbers": [1, 1, 1, 1], "target": 999}
_TIMEOUT_S = 120.0


class Refused(Exception):
    """An answer with a status that tells of an error."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:300]}")


class HttpOperations:
    """Requests of every kind; each leaves nothing behind but what the server keeps for a time."""

    def __init__(self, url: str, problems: Sequence[Countdown]) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S)
        self._problems = problems

    @property
    def operations(self) -> list[Operation]:
        """What there is to do."""
        return [
            Operation("http_completion", self._completion, 2),
            Operation("http_constrained", self._constrained, 1),
            Operation("http_repeated", self._repeated, 1),
            Operation("http_stream", self._stream, 3),
            Operation("http_stream_left", self._stream_left, 3),
            Operation("http_tree", self._tree, 3),
            Operation("http_tree_expired", self._tree_expired, 1),
            Operation("http_search", self._search, 1),
            Operation("http_search_left", self._search_left, 1),
            Operation("http_search_cancelled", self._search_cancelled, 1),
        ]

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    # ---------------------------------------------------------------- completions

    async def _completion(self, draws: random.Random) -> None:
        await self._post("/v1/completions", self._asked(draws, n=draws.randint(1, 4)))

    async def _constrained(self, draws: random.Random) -> None:
        schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        await self._post("/v1/completions", self._asked(draws, response_format=form))

    async def _repeated(self, draws: random.Random) -> None:
        body, headers = self._asked(draws), {"idempotency-key": secrets.token_hex(8)}
        first = await self._post("/v1/completions", body, headers=headers)
        if await self._post("/v1/completions", body, headers=headers) != first:
            raise AssertionError("a request that was repeated had another answer")

    async def _stream(self, draws: random.Random) -> None:
        body = self._asked(draws, stream=True)
        async with self._streamed("POST", "/v1/completions", body) as lines:
            told = [line async for line in lines if line.startswith("data: ")]
        if told[-1] != "data: [DONE]":
            raise AssertionError(f"a stream ended with {told[-1]}")

    async def _stream_left(self, draws: random.Random) -> None:
        body = self._asked(draws, stream=True, max_tokens=300, n=draws.randint(1, 4), logit_bias={"256": -100})
        await self._leave(draws, "/v1/completions", body)

    # ---------------------------------------------------------------- trees

    async def _tree(self, draws: random.Random) -> None:
        tree = await self._new_tree(draws, ttl_s=60.0)
        kids = await self._post(f"{tree}/nodes/0/fork", {"n": draws.randint(1, 4)})
        nodes = [node["id"] for node in kids["data"]]
        grow = {"nodes": nodes, "max_tokens": draws.randint(1, 48)}
        if draws.random() < 0.5:
            await self._post(f"{tree}/generate", grow)
        else:
            await self._leave(draws, f"{tree}/generate", {**grow, "stream": True})
        await self._post(f"{tree}/nodes/{nodes[0]}/fork", {"n": 2, "at": 0})
        await self._post(f"{tree}/nodes/0/score", {"continuations": ["1+2=3", "7"]})
        await self._post(f"{tree}/nodes/0/pin", {"ttl_s": 1.0})
        if draws.random() < 0.5:
            await self._delete(f"{tree}/nodes/{nodes[-1]}")
        await self._delete(tree)

    async def _tree_expired(self, draws: random.Random) -> None:
        tree = await self._new_tree(draws, ttl_s=0.5)
        await self._post(f"{tree}/lease", {"ttl_s": 0.5})
        await asyncio.sleep(2.0)
        answer = await self._http.get(tree)
        if answer.status_code != 410 or answer.json()["error"]["code"] != "lease_expired":
            raise Refused(answer)

    async def _new_tree(self, draws: random.Random, ttl_s: float) -> str:
        made = await self._post("/v1/trees", {"prompt": self._problem(draws).prompt, "ttl_s": ttl_s})
        return f"/v1/trees/{made['id']}"

    # ---------------------------------------------------------------- searches

    async def _search(self, draws: random.Random) -> None:
        problem = self._problem(draws)
        task = {"kind": "countdown", "numbers": list(problem.numbers), "target": problem.target}
        asked = {"task": task, "budget": {"tokens": 300}, "seed": draws.getrandbits(32)}
        found = await self._post("/v1/search", asked)
        if found["status"] != "finished":
            raise AssertionError(f"a search came to be {found['status']}: {found['error']}")
        if draws.random() < 0.3:
            await self._post(f"/v1/searches/{found['id']}/nodes/0/branch", {"n": 2})

    async def _search_left(self, draws: random.Random) -> None:
        """Leave before the result is there, which ends the search."""
        waiting = asyncio.create_task(self._post("/v1/search", self._long(draws)))
        await asyncio.wait([waiting], timeout=0.2 + draws.random())
        waiting.cancel()
        await asyncio.wait([waiting])

    async def _search_cancelled(self, draws: random.Random) -> None:
        started = await self._post("/v1/search", {**self._long(draws), "wait": False})
        await asyncio.sleep(draws.random())
        if draws.random() < 0.5:
            await self._leave(draws, f"/v1/searches/{started['id']}/events", None)
        ended = await self._delete(f"/v1/searches/{started['id']}")
        if ended["status"] != "cancelled":
            raise AssertionError(f"a search that was cancelled is {ended['status']}")

    # ---------------------------------------------------------------- helpers

    def _problem(self, draws: random.Random) -> Countdown:
        return draws.choice(self._problems)

    def _asked(self, draws: random.Random, **more: Any) -> dict[str, Any]:
        prompt, tokens = self._problem(draws).prompt, draws.randint(1, 48)
        return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "seed": draws.getrandbits(32), **more}

    def _long(self, draws: random.Random) -> dict[str, Any]:
        return {"task": _HOPELESS, "budget": {"tokens": 1_000_000}, "seed": draws.getrandbits(32)}

    async def _post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
        return _content(await self._http.post(path, json=body, headers=headers))

    async def _delete(self, path: str) -> Any:
        return _content(await self._http.delete(path))

    @asynccontextmanager
    async def _streamed(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[AsyncIterator[str]]:
        async with self._http.stream(method, path, json=body) as response:
            if response.is_error:
                await response.aread()
                raise Refused(response)
            yield response.aiter_lines()

    async def _leave(self, draws: random.Random, path: str, body: dict[str, Any] | None) -> None:
        """Read some events of a stream, and close the connection in the middle."""
        left = draws.randint(1, 6)
        async with self._streamed("POST" if body is not None else "GET", path, body) as lines:
            async for line in lines:
                left -= line.startswith("data: ")
                if left <= 0:
                    return


def _content(answer: httpx.Response) -> Any:
    if answer.is_error:
        raise Refused(answer)
    return json.loads(answer.content)

"""The desk's services as an ingress sees them: each method a message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from actors.rpc import ActorLost, call
from dendrite.search.task import Task
from serve_apps.events import Page
from serve_apps.ledger import KeyLimits
from serve_apps.search_schemas import BranchRequest, SearchPlan, SearchView
from serve_apps.tree_schemas import GenerateOne, Lease, NodeView, Pinned, StreamView, TreeView
from serve_apps.unbroken import Unbroken

Do = Callable[..., Awaitable[Any]]
"""Makes a call of the desk: the service, the method, its arguments and options."""


_SETTLED_WITHIN_S = 10.0


class _Service:
    """One service of the desk. A call goes on there if the request that makes it is cancelled, or begins only then."""

    name: str

    def __init__(self, do: Do) -> None:
        self._do, self._unbroken = do, Unbroken()

    async def _call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        return await self._unbroken.do(self._send(verb, arguments, options))

    async def _send(self, verb: str, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        return await call(self._do(self.name, verb, arguments, options), "the desk")


class RemoteAccounts(_Service):
    """Implements `Accounts`."""

    name = "accounts"

    def __init__(self, do: Do, limits: Mapping[str, KeyLimits]) -> None:
        """Keep accounts at the desk for the keys that `limits` sets any for; others have none to keep."""
        super().__init__(do)
        self._limited = {owner for owner, each in limits.items() if each != KeyLimits()}

    async def admit(self, owner: str, kv_bytes: int = 0) -> None:
        """See `Accounts`."""
        if owner in self._limited:
            await self._call("admit", owner, kv_bytes)

    async def settle(self, owner: str, kv_bytes: int, tokens: int) -> None:
        """See `Accounts`. A desk that is lost, or ends with the application, keeps no accounts any more."""
        if owner not in self._limited:
            return
        with contextlib.suppress(ActorLost, TimeoutError):
            await asyncio.wait_for(self._call("settle", owner, kv_bytes, tokens), _SETTLED_WITHIN_S)


class RemoteReplays(_Service):
    """Implements `Replays`."""

    name = "replays"

    async def begin(self, owner: str, key: str, fingerprint: str) -> str | None:
        """See `Replays`."""
        answer: str | None = await self._call("begin", owner, key, fingerprint)
        return answer

    async def end(self, owner: str, key: str, answer: str) -> None:
        """See `Replays`."""
        await self._call("end", owner, key, answer)

    async def forget(self, owner: str, key: str) -> None:
        """See `Replays`."""
        await self._call("forget", owner, key)


class RemoteSearches(_Service):
    """Implements `Searches`."""

    name = "searches"

    async def start(self, owner: str, task: Task, plan: SearchPlan) -> SearchView:
        """See `Searches`."""
        view: SearchView = await self._call("start", owner, task, plan)
        return view

    async def view(self, owner: str, id: str) -> SearchView:
        """See `Searches`."""
        view: SearchView = await self._call("view", owner, id)
        return view

    async def wait(self, owner: str, id: str) -> SearchView:
        """See `Searches`."""
        view: SearchView = await self._call("wait", owner, id)
        return view

    async def read(self, owner: str, id: str, after: int, wait_s: float) -> Page:
        """See `Searches`."""
        page: Page = await self._call("read", owner, id, after, wait_s)
        return page

    async def cancel(self, owner: str, id: str) -> SearchView:
        """See `Searches`."""
        view: SearchView = await self._call("cancel", owner, id)
        return view

    async def branch(self, owner: str, id: str, node: int, request: BranchRequest) -> list[int]:
        """See `Searches`."""
        nodes: list[int] = await self._call("branch", owner, id, node, request)
        return nodes


class RemoteTrees(_Service):
    """Implements `Trees`."""

    name = "trees"

    async def create(self, owner: str, prompt: Sequence[int], ttl_s: float) -> TreeView:
        """See `Trees`."""
        view: TreeView = await self._call("create", owner, prompt, ttl_s)
        return view

    async def view(self, owner: str, id: str) -> TreeView:
        """See `Trees`."""
        view: TreeView = await self._call("view", owner, id)
        return view

    async def nodes(self, owner: str, id: str, nodes: Sequence[int]) -> list[NodeView]:
        """See `Trees`."""
        views: list[NodeView] = await self._call("nodes", owner, id, nodes)
        return views

    async def fork(self, owner: str, id: str, node: int, n: int, at: int | None) -> list[NodeView]:
        """See `Trees`."""
        views: list[NodeView] = await self._call("fork", owner, id, node, n, at)
        return views

    async def generate(self, owner: str, id: str, nodes: Sequence[int], plan: GenerateOne) -> StreamView:
        """See `Trees`."""
        view: StreamView = await self._call("generate", owner, id, nodes, plan)
        return view

    async def settled(self, owner: str, id: str, stream: str) -> None:
        """See `Trees`."""
        await self._call("settled", owner, id, stream)

    async def read(self, owner: str, id: str, stream: str, after: int, wait_s: float) -> Page:
        """See `Trees`."""
        page: Page = await self._call("read", owner, id, stream, after, wait_s)
        return page

    async def score(self, owner: str, id: str, node: int, continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Trees`."""
        scores: list[list[float]] = await self._call("score", owner, id, node, continuations)
        return scores

    async def renew(self, owner: str, id: str, ttl_s: float) -> Lease:
        """See `Trees`."""
        lease: Lease = await self._call("renew", owner, id, ttl_s)
        return lease

    async def pin(self, owner: str, id: str, node: int, ttl_s: float) -> Pinned:
        """See `Trees`."""
        pinned: Pinned = await self._call("pin", owner, id, node, ttl_s)
        return pinned

    async def delete_node(self, owner: str, id: str, node: int, *, subtree: bool) -> None:
        """See `Trees`."""
        await self._call("delete_node", owner, id, node, subtree=subtree)

    async def delete(self, owner: str, id: str) -> None:
        """See `Trees`."""
        await self._call("delete", owner, id)

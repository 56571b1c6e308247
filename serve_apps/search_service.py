"""What the routes ask of whatever runs the searches."""

from __future__ import annotations

import asyncio
from typing import Protocol

from dendrite.search.task import Task
from serve_apps.events import Page
from serve_apps.search_schemas import BranchRequest, SearchPlan, SearchView


class Searches(Protocol):
    """Searches by id. One that is somebody else's is not there."""

    async def start(self, owner: str, task: Task, plan: SearchPlan) -> SearchView:
        """Begin a search."""
        ...

    async def view(self, owner: str, id: str) -> SearchView:
        """How a search stands."""
        ...

    async def wait(self, owner: str, id: str) -> SearchView:
        """How a search stands when it has ended."""
        ...

    async def read(self, owner: str, id: str, after: int, wait_s: float) -> Page:
        """Events of its trace."""
        ...

    async def cancel(self, owner: str, id: str) -> SearchView:
        """End a search now; all it held is released when this returns. Idempotent."""
        ...

    async def branch(self, owner: str, id: str, node: int, request: BranchRequest) -> list[int]:
        """Make more children of a node, whether or not the search has ended; returns their numbers."""
        ...


async def begin(searches: Searches, owner: str, task: Task, plan: SearchPlan) -> SearchView:
    """Begin a search. Cancelling who waits for that cancels the search, which nobody knows of then."""
    starting = asyncio.ensure_future(searches.start(owner, task, plan))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if starting.exception() is None:
            await searches.cancel(owner, starting.result().id)
        raise


async def outcome(searches: Searches, owner: str, id: str) -> SearchView:
    """How a search stands when it has ended. Cancelling who waits for that cancels the search."""
    try:
        return await searches.wait(owner, id)
    except asyncio.CancelledError:
        await searches.cancel(owner, id)
        raise

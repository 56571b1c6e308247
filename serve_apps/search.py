"""Searches: post a problem, watch its tree grow, cancel, branch by hand."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from serve_apps.events import Page
from serve_apps.following import After, LastEventId, follow
from serve_apps.idempotency import IdempotencyKey, once
from serve_apps.problems import task_of
from serve_apps.schemas import STREAMED, error_responses
from serve_apps.search_schemas import Branched, BranchRequest, SearchPlan, SearchRequest, SearchView
from serve_apps.search_service import begin, outcome
from serve_apps.security import Owner
from serve_apps.services import Services, Serving
from serve_apps.sse import EventStream, unless_gone

router = APIRouter(prefix="/v1", tags=["Search"])
SearchId = Annotated[str, Path(max_length=128)]
NodeNumber = Annotated[int, Path(ge=0, lt=2**53)]


@router.post("/search", response_model=SearchView, responses={**error_responses(409), **STREAMED})
async def search(
    body: SearchRequest, request: Request, serving: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
) -> SearchView | Response:
    """Search for an answer.

    The answer is the result; with `stream` the trace's events, under a header `X-Search-Id`; or with `"wait": false` at
    once the search's id. A search that is waited for ends when the client disconnects; one that
    is streamed or not waited for goes on, and can be followed again.
    """
    plan = SearchPlan(**{name: getattr(body, name) for name in SearchPlan.model_fields})

    task = task_of(body.task)

    async def start() -> SearchView:
        await serving.accounts.admit(owner)
        return await begin(serving.searches, owner, task, plan)

    started = await once(serving.replays, owner, idempotency_key, "search", body, SearchView, start)
    if body.stream:
        return _follow(serving, owner, started.id, 0)
    if not body.wait:
        return started
    return await unless_gone(request, outcome(serving.searches, owner, started.id))


@router.get("/searches/{id}", responses=error_responses(404))
async def get_search(id: SearchId, serving: Serving, owner: Owner) -> SearchView:
    """How a search stands."""
    return await serving.searches.view(owner, id)


@router.get("/searches/{id}/events", response_model=None, responses={**error_responses(404), **STREAMED})
async def get_events(
    id: SearchId, serving: Serving, owner: Owner, last_event_id: LastEventId = 0, after: After = 0
) -> Response:
    """The events of a search's trace, from any of them on, until it has ended."""
    await serving.searches.view(owner, id)
    return _follow(serving, owner, id, max(last_event_id, after))


@router.delete("/searches/{id}", responses=error_responses(404))
async def cancel_search(id: SearchId, serving: Serving, owner: Owner) -> SearchView:
    """Cancel a search at once. What it has found can be looked at for a while."""
    return await serving.searches.cancel(owner, id)


@router.post("/searches/{id}/nodes/{node}/branch", responses=error_responses(404, 409))
async def branch(
    id: SearchId,
    node: NodeNumber,
    body: BranchRequest,
    serving: Serving,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Branched:
    """Make more children of any node by hand, during the search or after it."""

    async def grow() -> Branched:
        await serving.accounts.admit(owner)
        return Branched(nodes=await serving.searches.branch(owner, id, node, body))

    return await once(serving.replays, owner, idempotency_key, f"branch {id} {node}", body, Branched, grow)


def _follow(serving: Services, owner: str, id: str, after: int) -> EventStream:
    async def read(after: int, wait_s: float) -> Page:
        return await serving.searches.read(owner, id, after, wait_s)

    return EventStream(follow(read, after), headers={"x-search-id": id})

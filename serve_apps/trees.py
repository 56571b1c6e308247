"""Trees: fork, generate, score, look, give up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from serve_apps.events import Page
from serve_apps.following import MAX_EVENT, After, LastEventId, follow
from serve_apps.idempotency import IdempotencyKey, once
from serve_apps.response_formats import grammar_for
from serve_apps.schemas import STREAMED, Deleted, Usage, error_responses
from serve_apps.security import Owner
from serve_apps.services import Services, Serving
from serve_apps.sse import EventStream
from serve_apps.tree_schemas import (
    CreateTree,
    Fork,
    Generate,
    GenerateOne,
    Lease,
    NodeList,
    NodeView,
    Pin,
    Pinned,
    Renew,
    Score,
    Scores,
    StreamView,
    TreeView,
)

router = APIRouter(prefix="/v1/trees", tags=["Trees"])
TreeId = Annotated[str, Path(max_length=128)]
StreamId = Annotated[str, Path(max_length=128)]
NodeNumber = Annotated[int, Path(ge=0, lt=2**53)]
_ERRORS = error_responses(404, 409, 410)


@router.post("", responses=error_responses(409))
async def create_tree(
    body: CreateTree, serving: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
) -> TreeView:
    """Prefill a prompt or a conversation as the root of a tree."""
    if body.messages is not None:
        prompt = serving.codec.chat([{"role": each.role, "content": each.text} for each in body.messages])
    else:
        prompt = serving.codec.prompt(body.prompt if body.prompt is not None else "", "prompt")

    async def create() -> TreeView:
        await serving.accounts.admit(owner)
        serving.metrics.prompt_tokens.inc(len(prompt))
        return await serving.trees.create(owner, prompt, body.ttl_s)

    return await once(serving.replays, owner, idempotency_key, "create", body, TreeView, create)


@router.get("/{id}", responses=_ERRORS)
async def get_tree(id: TreeId, serving: Serving, owner: Owner) -> TreeView:
    """The topology of a tree, and what it holds."""
    return await serving.trees.view(owner, id)


@router.delete("/{id}", responses=_ERRORS)
async def delete_tree(id: TreeId, serving: Serving, owner: Owner) -> Deleted:
    """Give up a tree. What is generating in it is cancelled."""
    await serving.trees.delete(owner, id)
    return Deleted(id=id, object="tree.deleted")


@router.post("/{id}/lease", responses=_ERRORS)
async def renew_lease(
    id: TreeId, body: Renew, serving: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Lease:
    """Renew a tree's lease. A tree whose lease runs out is given up."""

    async def renew() -> Lease:
        return await serving.trees.renew(owner, id, body.ttl_s)

    return await once(serving.replays, owner, idempotency_key, f"lease {id}", body, Lease, renew)


@router.get("/{id}/nodes/{node}", responses=_ERRORS)
async def get_node(id: TreeId, node: NodeNumber, serving: Serving, owner: Owner) -> NodeView:
    """One node."""
    return (await serving.trees.nodes(owner, id, [node]))[0]


@router.delete("/{id}/nodes/{node}", responses=_ERRORS)
async def delete_node(
    id: TreeId,
    node: NodeNumber,
    serving: Serving,
    owner: Owner,
    subtree: Annotated[bool, Query(description="Give up all below the node too.")] = False,
) -> Deleted:
    """Give up a node. What is generating there is cancelled; its KV stays while nodes below it live."""
    await serving.trees.delete_node(owner, id, node, subtree=subtree)
    return Deleted(id=str(node), object="node.deleted")


@router.post("/{id}/nodes/{node}/fork", responses=_ERRORS)
async def fork(
    id: TreeId, node: NodeNumber, body: Fork, serving: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
) -> NodeList:
    """Make children of a node, at its end or after any of its tokens, also while it is generating."""

    async def make() -> NodeList:
        await serving.accounts.admit(owner)
        return NodeList(data=await serving.trees.fork(owner, id, node, body.n, body.at))

    return await once(serving.replays, owner, idempotency_key, f"fork {id} {node}", body, NodeList, make)


@router.post("/{id}/nodes/{node}/score", responses=_ERRORS)
async def score(
    id: TreeId, node: NodeNumber, body: Score, serving: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Scores:
    """How likely continuations of a node are, token by token."""
    given = [serving.codec.continuation(each, "continuations") for each in body.continuations]

    async def ask() -> Scores:
        await serving.accounts.admit(owner)
        return Scores(scores=await serving.trees.score(owner, id, node, given))

    return await once(serving.replays, owner, idempotency_key, f"score {id} {node}", body, Scores, ask)


@router.post("/{id}/nodes/{node}/pin", responses=_ERRORS)
async def pin(
    id: TreeId, node: NodeNumber, body: Pin, serving: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Pinned:
    """Hold the KV of a node and all before it for a time, also past the tree."""

    async def hold() -> Pinned:
        await serving.accounts.admit(owner)
        return await serving.trees.pin(owner, id, node, body.ttl_s)

    return await once(serving.replays, owner, idempotency_key, f"pin {id} {node}", body, Pinned, hold)


@router.post("/{id}/generate", response_model=NodeList, responses={**_ERRORS, **STREAMED})
async def generate(
    id: TreeId, body: Generate, serving: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
) -> NodeList | Response:
    """Extend nodes, all as one batch.

    With `stream`, events come as they happen. A client that is cut off goes on at `…/streams/{stream}`, whose id the
    header `X-Stream-Id` tells; generation goes on meanwhile, for the nodes are the tree's: delete one to cancel it.
    """
    plan = GenerateOne(**{name: getattr(body, name) for name in body.model_fields_set - {"nodes"}})
    return await _generate(serving, owner, id, body.nodes, plan, idempotency_key)


@router.post("/{id}/nodes/{node}/generate", response_model=NodeList, responses={**_ERRORS, **STREAMED})
async def generate_one(
    id: TreeId,
    node: NodeNumber,
    body: GenerateOne,
    serving: Serving,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> NodeList | Response:
    """Extend one node; see `/v1/trees/{id}/generate`."""
    return await _generate(serving, owner, id, [node], body, idempotency_key)


@router.get("/{id}/streams/{stream}", response_model=None, responses={**_ERRORS, **STREAMED})
async def get_stream(
    id: TreeId, stream: StreamId, serving: Serving, owner: Owner, last_event_id: LastEventId = 0, after: After = 0
) -> Response:
    """The events of a stream, from any of them on, until all its nodes have ended."""
    await serving.trees.read(owner, id, stream, MAX_EVENT, 0.0)  # nothing, or a 404 instead of a stream
    return _follow(serving, owner, id, stream, max(last_event_id, after))


async def _generate(
    serving: Services, owner: str, id: str, nodes: Sequence[int], plan: GenerateOne, key: str | None
) -> NodeList | Response:
    asked = plan.max_tokens if "max_tokens" in plan.model_fields_set else None
    plan = plan.model_copy(update={"max_tokens": serving.settings.tokens(asked, "max_tokens", plan.max_tokens)})
    await grammar_for(plan.response_format, serving.settings.grammar_limits)  # refused before anything is generated

    async def begin() -> StreamView:
        await serving.accounts.admit(owner)
        return await serving.trees.generate(owner, id, nodes, plan)

    what = f"generate {id} {list(nodes)}"
    started = await once(serving.replays, owner, key, what, plan, StreamView, begin)
    if plan.stream:
        return _follow(serving, owner, id, started.id, 0)
    await serving.trees.settled(owner, id, started.id)
    views = await serving.trees.nodes(owner, id, nodes)
    generated = sum(len(view.tokens) for view in views) - sum(started.lengths)
    serving.metrics.tokens.inc(generated)
    return NodeList(data=views, usage=Usage.of(0, generated))


def _follow(serving: Services, owner: str, id: str, stream: str, after: int) -> EventStream:
    async def read(after: int, wait_s: float) -> Page:
        page = await serving.trees.read(owner, id, stream, after, wait_s)
        serving.metrics.tokens.inc(sum(len(event["tokens"]) for _, event in page.events if event["event"] == "tokens"))
        return page

    return EventStream(follow(read, after), headers={"x-stream-id": stream})

"""Searches behind chat completions: the model `countdown:mcts` answers with what an MCTS over `countdown` finds."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.responses import Response

from dendrite.search.run import ALGORITHMS
from serve_apps.errors import HttpError, not_found, unsupported
from serve_apps.failures import told
from serve_apps.idempotency import once
from serve_apps.openai_schemas import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    Delta,
)
from serve_apps.problems import task_in
from serve_apps.schemas import Usage
from serve_apps.search_schemas import MAX_TOKENS, BudgetSpec, SearchPlan, SearchView
from serve_apps.search_service import begin, outcome
from serve_apps.services import Services
from serve_apps.sse import DONE, EventStream, frame, unless_gone

NAMES = tuple(ALGORITHMS)
_REFUSED = (
    "n",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
)
"""What means nothing for a search, and so is not taken."""


def algorithm_of(serving: Services, model: str) -> str | None:
    """The algorithm that a model's name asks for; None for the model itself.

    Raises:
        HttpError: 404, there is no such model.
    """
    if model == serving.codec.name:
        return None
    name, _, algorithm = model.rpartition(":")
    if name != serving.codec.name or algorithm not in ALGORITHMS:
        raise not_found("model", model)
    return algorithm


async def answer(
    body: ChatRequest, algorithm: str, request: Request, serving: Services, owner: str, idempotency_key: str | None
) -> ChatCompletion | Response:
    """Search for the answer to the last message; `max_tokens` is the search's budget of generated tokens.

    A stream brings the answer when it is found. The client's leaving cancels the search.
    """
    for field in _REFUSED:
        if getattr(body, field) is not None:
            raise unsupported(field, "means nothing for a search")
    if len(body.messages) != 1 or body.messages[0].role != "user":
        raise HttpError(400, "messages: a search takes one message, the user's", param="messages", code="invalid_value")
    task = task_in(body.messages[0].text)
    tokens, field = body.asked_tokens
    if tokens is not None and tokens > MAX_TOKENS:
        raise HttpError(400, f"{field}={tokens}: at most {MAX_TOKENS}", param=field, code="invalid_value")
    plan = SearchPlan(algorithm=algorithm, budget=BudgetSpec(tokens=tokens), seed=body.seed or 0)
    prompt_tokens = len(serving.codec.prompt(task.prompt, "messages"))
    id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def start() -> str:
        await serving.accounts.admit(owner)
        return (await begin(serving.searches, owner, task, plan)).id

    def completion(view: SearchView) -> ChatCompletion:
        text, usage = _found(view, prompt_tokens)
        choice = ChatChoice(index=0, message=ChatMessage(content=text), finish_reason="stop")
        return ChatCompletion(id=id, created=created, model=body.model, choices=[choice], usage=usage)

    async def whole() -> ChatCompletion:
        return completion(await outcome(serving.searches, owner, await start()))

    if not body.stream:
        return await unless_gone(
            request, once(serving.replays, owner, idempotency_key, "chat", body, ChatCompletion, whole)
        )
    search = await start()

    def chunk(delta: Delta, *, last: bool = False) -> bytes:
        choice = ChunkChoice(index=0, delta=delta, finish_reason="stop" if last else None)
        return frame(ChatChunk(id=id, created=created, model=body.model, choices=[choice]).model_dump_json())

    async def events() -> AsyncGenerator[bytes, None]:
        yield chunk(Delta(role="assistant", content=""))
        try:
            text, usage = _found(await outcome(serving.searches, owner, search), prompt_tokens)
            yield chunk(Delta(content=text))
            yield chunk(Delta(), last=True)
            if body.wants_usage:
                last = ChatChunk(id=id, created=created, model=body.model, choices=[], usage=usage)
                yield frame(last.model_dump_json())
            yield DONE
        except Exception as error:
            yield frame(told(error, f"request {request.state.request_id}").body.model_dump_json())

    async def leave() -> None:
        await serving.searches.cancel(owner, search)

    return EventStream(events(), headers={"x-search-id": search}, on_end=leave)


def _found(view: SearchView, prompt_tokens: int) -> tuple[str, Usage]:
    """The answer's text, and what it cost.

    Raises:
        HttpError: the search failed or was cancelled.
    """
    if view.result is None:
        status = 409 if view.status == "cancelled" else 500
        raise HttpError(status, view.error or f"the search was {view.status}", code=f"search_{view.status}")
    return view.result.text, Usage.of(prompt_tokens, view.result.tokens)

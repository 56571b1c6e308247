"""OpenAI's routes: models, completions, chat completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel
from starlette.responses import Response

from serve_apps import chat_search
from serve_apps.errors import not_found, unsupported
from serve_apps.failures import told
from serve_apps.idempotency import IdempotencyKey, once
from serve_apps.openai_schemas import (
    DEFAULT_TOKENS,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    Model,
    ModelList,
)
from serve_apps.openai_shapes import chat_logprobs, completion_logprobs, text_of
from serve_apps.openai_work import Order, Work
from serve_apps.response_formats import grammar_for
from serve_apps.schemas import STREAMED, error_responses
from serve_apps.security import Owner
from serve_apps.services import Releasing, Services, Serving
from serve_apps.sse import DONE, EventStream, frame, unless_gone
from serve_apps.stops import Item

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_STARTED = int(time.time())


@router.get("/models", responses=error_responses())
async def list_models(serving: Serving, owner: Owner) -> ModelList:
    """The model, and the searches over it that chat completions take by name."""
    names = [serving.codec.name, *(f"{serving.codec.name}:{name}" for name in chat_search.NAMES)]
    return ModelList(data=[Model(id=name, created=_STARTED) for name in names])


@router.get("/models/{model}", responses=error_responses(404))
async def get_model(model: Annotated[str, Path(max_length=512)], serving: Serving, owner: Owner) -> Model:
    """One of the models."""
    listed = await list_models(serving, owner)
    for each in listed.data:
        if each.id == model:
            return each
    raise not_found("model", model)


@router.post("/completions", response_model=Completion, responses={**error_responses(404, 409), **STREAMED})
async def complete(
    body: CompletionRequest,
    request: Request,
    serving: Serving,
    releases: Releasing,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Completion | Response:
    """Continue a text."""
    if body.model != serving.codec.name:
        raise not_found("model", body.model)
    request.state.user = body.user
    order = Order(
        prompts=_prompts(serving, body),
        n=body.n or 1,
        params=body.sampling(
            serving.settings.tokens(body.max_tokens, "max_tokens", DEFAULT_TOKENS),
            body.logprobs or 0,
            await grammar_for(body.response_format, serving.settings.grammar_limits),
        ),
        seed=body.seed,
        by_token=body.logprobs is not None,
    )
    work = Work(serving, releases, owner, order)
    id, created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
    offsets = [0] * len(work.writers)

    def choice(index: int, items: list[Item], *, ended: bool) -> CompletionChoice:
        logprobs = None
        if body.logprobs is not None and items:
            logprobs = completion_logprobs(serving.codec, items, offsets[index], top=body.logprobs > 0)
        offsets[index] += len(text_of(items))
        reason = work.writers[index].finish_reason if ended else None
        return CompletionChoice(index=index, text=text_of(items), logprobs=logprobs, finish_reason=reason)

    def chunk(index: int, item: Item | None) -> Completion:
        new = choice(index, [item] if item is not None else [], ended=item is None)
        return Completion(id=id, created=created, model=body.model, choices=[new])

    def last() -> Completion:
        return Completion(id=id, created=created, model=body.model, choices=[], usage=work.usage)

    async def whole() -> Completion:
        async with work:
            found = await work.all()
            choices = [choice(index, items, ended=True) for index, items in enumerate(found)]
            return Completion(id=id, created=created, model=body.model, choices=choices, usage=work.usage)

    if body.stream:
        _no_replay(idempotency_key)
        return await _stream(request, work, (), chunk, last if body.wants_usage else None)
    return await unless_gone(
        request, once(serving.replays, owner, idempotency_key, "completions", body, Completion, whole)
    )


@router.post("/chat/completions", response_model=ChatCompletion, responses={**error_responses(404, 409), **STREAMED})
async def chat(
    body: ChatRequest,
    request: Request,
    serving: Serving,
    releases: Releasing,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> ChatCompletion | Response:
    """Answer a conversation; with a model such as `countdown:mcts`, by a search."""
    request.state.user = body.user
    if body.stream:
        _no_replay(idempotency_key)
    searched = chat_search.algorithm_of(serving, body.model)
    if searched is not None:
        return await chat_search.answer(body, searched, request, serving, owner, idempotency_key)
    prompt = serving.codec.chat([{"role": each.role, "content": each.text} for each in body.messages])
    order = Order(
        prompts=[prompt],
        n=body.n or 1,
        params=body.sampling(
            serving.settings.tokens(*body.asked_tokens, serving.settings.max_tokens),
            body.top_logprobs or 0,
            await grammar_for(body.response_format, serving.settings.grammar_limits),
        ),
        seed=body.seed,
        by_token=bool(body.logprobs),
    )
    work = Work(serving, releases, owner, order)
    id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def chunk(index: int, item: Item | None) -> ChatChunk:
        logprobs = chat_logprobs(serving.codec, [item]) if item is not None and body.logprobs else None
        delta = Delta(content=item.text) if item is not None else Delta()
        reason = work.writers[index].finish_reason if item is None else None
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return ChatChunk(id=id, created=created, model=body.model, choices=[choice])

    def last() -> ChatChunk:
        return ChatChunk(id=id, created=created, model=body.model, choices=[], usage=work.usage)

    async def whole() -> ChatCompletion:
        async with work:
            choices = [
                ChatChoice(
                    index=index,
                    message=ChatMessage(content=text_of(items)),
                    logprobs=chat_logprobs(serving.codec, items) if body.logprobs else None,
                    finish_reason=work.writers[index].finish_reason,
                )
                for index, items in enumerate(await work.all())
            ]
            return ChatCompletion(id=id, created=created, model=body.model, choices=choices, usage=work.usage)

    if body.stream:
        begin = [ChunkChoice(index=index, delta=Delta(role="assistant", content="")) for index in range(order.n)]
        opening = [ChatChunk(id=id, created=created, model=body.model, choices=[each]) for each in begin]
        return await _stream(request, work, tuple(opening), chunk, last if body.wants_usage else None)
    return await unless_gone(
        request, once(serving.replays, owner, idempotency_key, "chat", body, ChatCompletion, whole)
    )


async def _stream(
    request: Request,
    work: Work,
    opening: tuple[BaseModel, ...],
    chunk: Callable[[int, Item | None], BaseModel],
    last: Callable[[], BaseModel] | None,
) -> Response:
    """Stream some work. What is wrong with the request fails with a status, as without a stream."""
    await work.open()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            held = b"".join(frame(each.model_dump_json()) for each in opening)  # goes with what comes next
            async with aclosing(work.items()) as items:
                async for index, item in items:
                    held += frame(chunk(index, item).model_dump_json())
                    if item is not None:
                        yield held
                        held = b""
            if last is not None:
                held += frame(last().model_dump_json())
            yield held + DONE
        except Exception as error:
            yield frame(told(error, f"request {request.state.request_id}").body.model_dump_json())

    return EventStream(events(), on_end=work.close)


def _prompts(serving: Services, body: CompletionRequest) -> list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [serving.codec.prompt(prompt, "prompt")]
    tokens = [each for each in prompt if isinstance(each, int)]
    several = [each for each in prompt if not isinstance(each, int)]
    return [serving.codec.prompt(each, "prompt") for each in (several or [tokens])]


def _no_replay(key: str | None) -> None:
    if key is not None:
        raise unsupported("Idempotency-Key", "an OpenAI stream is not kept; leave the key out, or don't stream")

"""Items of text in the shapes of OpenAI's responses."""

from __future__ import annotations

from collections.abc import Sequence

from serve_apps.openai_schemas import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from serve_apps.stops import Item, Token
from serve_apps.text import TextCodec


def chat_logprobs(codec: TextCodec, items: Sequence[Item]) -> ChatLogprobs:
    """Log-probabilities in a chat's form."""
    return ChatLogprobs(content=[_chat_token(codec, token) for item in items for token in item.tokens])


def _chat_token(codec: TextCodec, token: Token) -> TokenLogprob:
    own = _top(codec, token.id, token.logprob)
    top = [_top(codec, id, logprob) for id, logprob in token.top]
    return TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _top(codec: TextCodec, id: int, logprob: float) -> TopLogprob:
    told = codec.token_text(id)
    return TopLogprob(token=told.text, logprob=logprob, bytes=told.bytes)


def completion_logprobs(codec: TextCodec, items: Sequence[Item], offset: int, *, top: bool) -> CompletionLogprobs:
    """Log-probabilities in a completion's form; `offset` is the length of the text before `items`."""
    tokens: list[str] = []
    logprobs: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for item in items:
        for token in item.tokens:
            tokens.append(codec.token_text(token.id).text)
            logprobs.append(token.logprob)
            offsets.append(offset)
            tops.append({codec.token_text(id).text: logprob for id, logprob in reversed(token.top)})
        offset += len(item.text)
    return CompletionLogprobs(
        tokens=tokens, token_logprobs=logprobs, top_logprobs=tops if top else None, text_offset=offsets
    )


def text_of(items: Sequence[Item]) -> str:
    """The text of items."""
    return "".join(item.text for item in items)

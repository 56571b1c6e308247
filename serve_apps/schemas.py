"""What all requests and responses have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from dendrite.config import MAX_SEED, SamplingParams
from dendrite.grammar.spec import Grammar

MAX_STOPS, MAX_BIASES, MAX_CHOICES, MAX_TEXT = 16, 1_024, 128, 1_000_000

Text: TypeAlias = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Stop: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stops: TypeAlias = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]
TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Tokens: TypeAlias = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TEXT)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]
Count: TypeAlias = Annotated[int, Field(ge=1, strict=True)]
Flag: TypeAlias = StrictBool


class Request(BaseModel):
    """A request body. A field that is not named here is refused, and so never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Response(BaseModel):
    """A response body."""

    model_config = ConfigDict(frozen=True)


class Sampling(Request):
    """How tokens are chosen; null is the default of each field."""

    temperature: Annotated[Number, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31, strict=True)] | None = None
    min_p: Annotated[Number, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0.0, le=10.0)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(pattern="^[0-9]{1,9}$")], Annotated[Number, Field(ge=-100.0, le=100.0)]
            ],
            Field(max_length=MAX_BIASES),
        ]
        | None
    ) = None
    """By token id, in decimal, what is added to the token's logit."""
    stop: Stops | None = None
    """Texts that end the generation. The text of the response ends before them."""
    seed: Seed | None = None

    def sampling(self, max_tokens: int, top_logprobs: int = 0, grammar: Grammar | None = None) -> SamplingParams:
        """The engine's settings; the seed is left to the caller, for each branch needs its own."""
        named = ("temperature", "top_p", "top_k", "min_p")
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        given = {name: getattr(self, name) for name in (*named, *penalties) if getattr(self, name) is not None}
        return SamplingParams(
            max_tokens=max_tokens,
            top_logprobs=top_logprobs,
            grammar=grammar,
            stop=self.stops,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            **given,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ErrorDetail(Response):
    """What went wrong: in words, its class, the field at fault if there is one, and a code to act on."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Response):
    """The body of every response that is not a success."""

    error: ErrorDetail


class Usage(Response):
    """Tokens of a request. `completion_tokens` counts what was generated, a stop text included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        """Add the two up."""
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Deleted(Response):
    """Something is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""How a route says that its success may be a stream."""


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route documents, besides those that any request may meet."""
    return {status: {"model": ErrorBody} for status in (400, 401, 413, 422, 429, 500, 503, *statuses)}

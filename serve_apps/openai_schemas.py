"""OpenAI's completions and chat completions, as far as they are supported."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_serializer, model_validator

from serve_apps.schemas import MAX_CHOICES, Count, Flag, Request, Response, Sampling, Text, Tokens, Usage

FinishReason: TypeAlias = Literal["stop", "length"]
MAX_PROMPTS, MAX_MESSAGES, MAX_PARTS = 64, 4_096, 256
DEFAULT_TOKENS = 16
Choices: TypeAlias = Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)]
TopLogprobs: TypeAlias = Annotated[int, Field(ge=0, le=20, strict=True)]


class StreamOptions(Request):
    """`include_usage`: end the stream with a chunk that has no choices but the usage."""

    include_usage: Flag = False


class JsonSchemaFormat(Request):
    """A schema that the answer is to follow."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: Flag | None = None
    """Changes nothing: a schema always holds."""
    description: Text | None = None


class ResponseFormat(Request):
    """The form of the answer: any text, an object in JSON, or a document under a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise ValueError("response_format.json_schema: goes with the type json_schema, which needs it")
        return self


class _Generate(Sampling):
    """What both kinds of completion have."""

    model: Annotated[Text, Field(min_length=1)]
    n: Choices | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    """Written to the access log beside the request id."""

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Generate):
    """`POST /v1/completions`. A list of prompts gives `n` choices for each, prompt by prompt."""

    prompt: (
        Text
        | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Count | None = None
    """16 unless given."""
    logprobs: TopLogprobs | None = None


class TextPart(Request):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: Text


class Message(Request):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]

    @property
    def text(self) -> str:
        """The content, parts joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(_Generate):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    """The newer name of `max_tokens`; without either, as many as the server allows."""
    logprobs: Flag | None = None
    top_logprobs: TopLogprobs | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: not beside max_completion_tokens")
        return self

    @property
    def asked_tokens(self) -> tuple[int | None, str]:
        """How many tokens were asked for, and by which field."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens, "max_completion_tokens"
        return self.max_tokens, "max_tokens"


class CompletionLogprobs(Response):
    """Tokens of a completion with natural-log probabilities; `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Response):
    """One completion, or in a stream what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class Completion(Response):
    """`text_completion`: the whole, or a chunk of the stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(Response):
    """A token that might have been. `bytes` is null where the token is only part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that came, and those that were likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Response):
    """The tokens of a message."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Response):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Response):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Response):
    """`chat.completion`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Response):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer
    def _only_what_is_new(self) -> dict[str, str]:
        return {name: value for name, value in (("role", self.role), ("content", self.content)) if value is not None}


class ChunkChoice(Response):
    """What is new of a choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Response):
    """`chat.completion.chunk`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(Response):
    """A model, or a search over one under a name of its own."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["dendrite"] = "dendrite"


class ModelList(Response):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]

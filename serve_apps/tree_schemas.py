"""Trees over HTTP: nodes that fork, generate, score, and live as long as their lease."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from serve_apps.openai_schemas import MAX_MESSAGES, Message, ResponseFormat
from serve_apps.schemas import MAX_CHOICES, Count, Flag, Number, Request, Response, Sampling, Text, Tokens, Usage

Seconds: TypeAlias = Annotated[Number, Field(gt=0.0, le=3_600.0)]
NodeId: TypeAlias = Annotated[int, Field(ge=0, lt=2**53, strict=True)]
NodeState: TypeAlias = Literal["idle", "generating", "released"]
DEFAULT_TTL_S = 60.0


class CreateTree(Request):
    """`POST /v1/trees`: a prompt or messages, and how long the tree lives without a renewal of its lease."""

    prompt: Text | Tokens | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    ttl_s: Seconds = DEFAULT_TTL_S

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: exactly one of prompt and messages")
        return self


class Fork(Request):
    """`POST …/fork`: `n` children, which branch off after `at` of the node's own tokens; else at its end."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)] = 1
    at: Annotated[int, Field(ge=0, lt=2**31, strict=True)] | None = None


class GenerateOne(Sampling):
    """`POST …/nodes/{node}/generate`: extend a node by sampled tokens.

    A stop text is kept: a node's tokens end with the one that completes it.
    """

    max_tokens: Count = 128
    """Unless given, as many as the server allows if that is less."""
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] = 0
    response_format: ResponseFormat | None = None
    """A document that is not at its end goes on, in forks too; otherwise one begins at the end of the node."""
    stream: Flag = False
    """Answer with events as they happen, instead of with the nodes at the end."""


class Generate(GenerateOne):
    """`POST …/generate`: the same for several nodes, all as one batch."""

    nodes: Annotated[list[NodeId], Field(min_length=1, max_length=MAX_CHOICES)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.nodes)) < len(self.nodes):
            raise ValueError("nodes: each at most once")
        return self


class Score(Request):
    """`POST …/score`: how likely continuations are. Texts, or token ids; the tree is left as it was."""

    continuations: Annotated[
        list[Annotated[Text, Field(min_length=1)] | Tokens], Field(min_length=1, max_length=MAX_CHOICES)
    ]


class Renew(Request):
    """`POST …/lease`: the tree lives so much longer from now."""

    ttl_s: Seconds = DEFAULT_TTL_S


class Pin(Request):
    """`POST …/pin`: hold the KV of a node's path so long, also past the tree. It counts towards the key's quota."""

    ttl_s: Seconds = DEFAULT_TTL_S


class NodeView(Response):
    """A node. `tokens`, `text` and `logprobs` are its own; `at` is how many of its parent's tokens come before it."""

    id: int
    parent: int | None
    at: int
    state: NodeState
    tokens: list[int]
    text: str
    logprobs: list[float]
    value: float | None
    finish_reason: str | None
    children: list[int]
    kv_bytes: int


class NodeList(Response):
    """Nodes."""

    object: Literal["list"] = "list"
    data: list[NodeView]
    usage: Usage | None = None


class TreeStats(Response):
    """What a tree holds. `generated_tokens` counts all that it has generated."""

    nodes: int
    live_nodes: int
    generated_tokens: int
    kv_bytes: int


class TreeView(Response):
    """A tree: its topology and its lease."""

    id: str
    object: Literal["tree"] = "tree"
    root: int
    expires_in_s: float
    nodes: list[NodeView]
    stats: TreeStats


class Scores(Response):
    """Natural-log probabilities of each continuation's tokens."""

    scores: list[list[float]]


class Lease(Response):
    """How long the tree lives."""

    id: str
    object: Literal["lease"] = "lease"
    expires_in_s: float


class Pinned(Response):
    """A pin."""

    id: str
    object: Literal["pin"] = "pin"
    expires_in_s: float
    kv_bytes: int


class StreamView(Response):
    """Nodes are being generated, which had `lengths` tokens; the events are at `/v1/trees/{tree}/streams/{id}`."""

    id: str
    object: Literal["stream"] = "stream"
    nodes: list[int]
    lengths: list[int]

"""What a server answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Node(_Reply):
    """A node of a tree. `tokens`, `text` and `logprobs` are its own; `at` of its parent's tokens come before it."""

    id: int
    parent: int | None
    at: int
    state: Literal["idle", "generating", "released"]
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    value: float | None
    finish_reason: str | None
    children: tuple[int, ...]
    kv_bytes: int


class TreeStats(_Reply):
    """What a tree holds."""

    nodes: int
    live_nodes: int
    generated_tokens: int
    kv_bytes: int


class Tree(_Reply):
    """A tree, and the seconds that its lease has left."""

    id: str
    root: int
    expires_in_s: float
    nodes: tuple[Node, ...]
    stats: TreeStats


class SearchOutcome(_Reply):
    """What a search has found, and what it cost."""

    algorithm: str
    task: str
    seed: int
    solved: bool
    reward: float
    text: str
    answer: str | None
    tokens: int
    expansions: int
    seconds: float
    nodes: int
    stop_reason: str


class Search(_Reply):
    """A search under way, or how it has ended."""

    id: str
    status: Literal["running", "finished", "cancelled", "failed"]
    algorithm: str
    task: str
    seconds: float
    result: SearchOutcome | None
    error: str | None


class Event(_Reply):
    """An event of a stream. One that is cut off can be taken up again after any `id`."""

    id: int
    data: dict[str, Any]

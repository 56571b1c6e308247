"""The events of a trace, schema 1, as `docs/trace.md` describes them; one a line of JSONL."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA = 1
"""The version of the trace format."""

_SHARED = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class TraceEventBase(BaseModel):
    """What every event has: `time`, in seconds since the search began."""

    model_config = _SHARED

    time: float = Field(ge=0.0)


class TraceTask(BaseModel):
    """What a trace tells of the task. `oracle`: its reward consults a known answer."""

    model_config = _SHARED

    name: str
    prompt: str
    oracle: bool = False
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    max_depth: int | None = None


class SearchEvent(TraceEventBase):
    """A search began: the first line. `started` is the date and time, ISO 8601, UTC.

    `options` are those that were given, `settings` all in effect; `oracle` says that the search saw rewards which
    consult a known answer.
    """

    event: Literal["search"] = "search"
    schema_version: int = Field(alias="schema")
    started: str
    algorithm: str
    options: dict[str, Any]
    settings: dict[str, Any] = {}
    budget: dict[str, Any]
    seed: int
    oracle: bool = False
    task: TraceTask


class RootEvent(TraceEventBase):
    """A prompt, of these token ids, is in the cache: node 0, or one more that the search begins a tree from."""

    event: Literal["root"] = "root"
    node: int = Field(ge=0)
    tokens: tuple[int, ...]
    prompt: str = ""
    ended: bool = False
    reward: float | None = None


class ExpandEvent(TraceEventBase):
    """An expansion of `node` into `n` children of at most `max_tokens` tokens each started."""

    event: Literal["expand"] = "expand"
    call: int
    node: int
    n: int
    max_tokens: int
    temperature: float
    seed: int


class CancelledEvent(TraceEventBase):
    """An expansion was given up, and what it had made released."""

    event: Literal["cancelled"] = "cancelled"
    call: int


class ChildRecord(BaseModel):
    """A child as it came: its own thought alone, and what was known of it then."""

    model_config = _SHARED

    node: int = Field(ge=1)
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    value: float | None = None
    reward: float | None = None
    ended: bool = False
    answer: str | None = None
    finish_reason: str | None = None
    pages: int | None = None
    worker: int | None = None

    @model_validator(mode="after")
    def _a_logprob_a_token(self) -> ChildRecord:
        if self.logprobs and len(self.logprobs) != len(self.tokens):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.tokens)} tokens")
        return self


class ChildrenEvent(TraceEventBase):
    """An expansion returned; without children if the context had no room.

    `batch` numbers the `of` expansions that the search was told of together. `reward_calls` counts what was asked of a
    reward model or judge to value the children.
    """

    event: Literal["children"] = "children"
    call: int
    node: int
    batch: int | None = None
    of: int | None = None
    reward_calls: int = 0
    children: tuple[ChildRecord, ...]


class BackupEvent(TraceEventBase):
    """A visit of `node` was completed; it counts for the node and all its ancestors."""

    event: Literal["backup"] = "backup"
    node: int
    value: float


class ReleaseEvent(TraceEventBase):
    """The KV of `node`, and with `subtree` of all below it, was given up."""

    event: Literal["release"] = "release"
    node: int
    subtree: bool = False


class RootMovedEvent(TraceEventBase):
    """The search went on below `node` alone."""

    event: Literal["root_moved"] = "root_moved"
    node: int


class ResumedEvent(TraceEventBase):
    """The search was taken up again; what was in flight starts anew, as the same calls."""

    event: Literal["resumed"] = "resumed"


class ResultEvent(TraceEventBase):
    """The search finished; further fields of its result are kept."""

    model_config = ConfigDict(**{**_SHARED, "extra": "allow"})

    event: Literal["result"] = "result"
    solved: bool
    reward: float | None = None
    text: str
    answer: str | None = None
    stop_reason: str


TraceEvent: TypeAlias = (
    SearchEvent
    | RootEvent
    | ExpandEvent
    | ChildrenEvent
    | BackupEvent
    | ReleaseEvent
    | CancelledEvent
    | RootMovedEvent
    | ResumedEvent
    | ResultEvent
)

KINDS: Final[Mapping[str, type[TraceEvent]]] = MappingProxyType(
    {
        "search": SearchEvent,
        "root": RootEvent,
        "expand": ExpandEvent,
        "children": ChildrenEvent,
        "backup": BackupEvent,
        "release": ReleaseEvent,
        "cancelled": CancelledEvent,
        "root_moved": RootMovedEvent,
        "resumed": ResumedEvent,
        "result": ResultEvent,
    }
)
"""The events by the name in their field `event`."""

"""Searches over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from dendrite.search.budget import Budget
from dendrite.search.run import DEFAULT_BUDGET
from serve_apps.problems import Problem
from serve_apps.schemas import Flag, Number, Request, Response, Seed

Status: TypeAlias = Literal["running", "finished", "cancelled", "failed"]
MAX_TOKENS, MAX_SECONDS = 1_000_000, 600.0


class BudgetSpec(Request):
    """The most that a search may spend; 4,096 tokens unless something is named, and never more than 600 s."""

    tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS, strict=True)] | None = None
    seconds: Annotated[Number, Field(gt=0.0, le=MAX_SECONDS)] | None = None
    expansions: Annotated[int, Field(ge=1, le=100_000, strict=True)] | None = None
    kv_bytes: Annotated[int, Field(ge=1, strict=True)] | None = None

    def budget(self, kv_bytes: int | None) -> Budget:
        """The search's own form of it; `kv_bytes` is what the key allows."""
        limits = [each for each in (self.kv_bytes, kv_bytes) if each is not None]
        tokens = self.tokens
        if tokens is self.seconds is self.expansions is None:
            tokens = DEFAULT_BUDGET.tokens
        return Budget(tokens, self.seconds or MAX_SECONDS, self.expansions, None, min(limits, default=None))


class SearchPlan(Request):
    """How to search, whatever the problem."""

    algorithm: Annotated[str, Field(max_length=64)] = "mcts"
    options: Annotated[dict[Annotated[str, Field(max_length=64)], Any], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Settings of the algorithm."""
    budget: BudgetSpec = BudgetSpec()
    seed: Seed = 0
    values: Literal["head", "rule", "logprob", "judge"] = "head"
    oracle: Flag = False
    """Show the search rewards that consult a known answer."""


class SearchRequest(SearchPlan):
    """`POST /v1/search`."""

    task: Problem
    stream: Flag = False
    """Answer with the trace's events as they happen, instead of with the result."""
    wait: Flag = True
    """Without a stream: answer when the search has ended, or at once."""


class BranchRequest(Request):
    """`POST /v1/searches/{id}/nodes/{node}/branch`: more children of a node, by hand."""

    n: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    temperature: Annotated[Number, Field(ge=0.0, le=2.0)] = 1.0
    seed: Seed | None = None


class Branched(Response):
    """Numbers of the new nodes, which the search's events describe."""

    nodes: list[int]


class SearchResultView(Response):
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
    reward_calls: int
    oracle: bool


class SearchView(Response):
    """A search: under way, or how it has ended. It is kept for a while after that."""

    id: str
    object: Literal["search"] = "search"
    status: Status
    algorithm: str
    task: str
    seconds: float
    events: int
    result: SearchResultView | None = None
    error: str | None = None

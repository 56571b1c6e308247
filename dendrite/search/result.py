"""What a search returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dendrite.search.budget import Limit

StopReason: TypeAlias = Literal["solved", "exhausted", "converged", "decided", "interrupted"] | Limit


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer of a search, and what it cost.

    `text` is the answer's path after the prompt: the best rewarded terminal, else the terminal or leaf of the highest
    value. `reward` is the task's own, 0 for a text that is not terminal; `solved` means a reward of 1. `tokens` counts
    the generated tokens of the `expansions` that returned; those of expansions cancelled at the end are known to the
    backend alone. `nodes` is the size of the tree, its root included. `stop_reason` is "solved", the limit of the
    budget that was reached, "exhausted" if there was nothing left to try, "converged" or "decided" where an algorithm
    stops early (see its options), or "interrupted" for the replay of a search that had not ended. `oracle` says that
    the search itself saw rewards which consult a known answer: then `reward` and `solved` say nothing of how it would
    do without.
    """

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
    stop_reason: StopReason
    reward_calls: int = 0
    oracle: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, for a line of JSONL."""
        return dataclasses.asdict(self)

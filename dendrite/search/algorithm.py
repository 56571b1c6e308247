"""What a search algorithm is: it grows a tree in a session until it has an answer or the budget is spent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from dendrite.search.session import Session
from dendrite.search.thought import Thought


class AlgorithmOptions(BaseModel):
    """Base of the frozen settings of the algorithms."""

    model_config = ConfigDict(frozen=True, extra="forbid")


OptionsT = TypeVar("OptionsT", bound=AlgorithmOptions)


class Algorithm(ABC, Generic[OptionsT]):
    """One run of an algorithm.

    `run` may be cancelled at any wait, which is how a deadline ends it; `best` and `nodes` then tell what it had.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[AlgorithmOptions]]
    stopped: Literal["converged", "decided"] | None = None
    """Why `run` has stopped with something left to try: its choice can't change any more, or no leaf can win."""

    def __init__(self, session: Session, options: OptionsT) -> None:
        self.session = session
        self.options = options

    @abstractmethod
    async def run(self) -> None:
        """Search until solved, out of budget, or out of things to try."""

    @abstractmethod
    def best(self) -> Thought | None:
        """The best rewarded end, else the leaf of the highest value; None if there is none."""

    @property
    @abstractmethod
    def nodes(self) -> int:
        """Size of the tree grown so far, its root included."""


def best_of(thoughts: Iterable[Thought]) -> Thought | None:
    """Pick the best rewarded end, else an end whose reward is hidden, else the best value; the first among equals."""
    return max(thoughts, key=_worth, default=None)


def _worth(thought: Thought) -> tuple[float, bool, float]:
    hidden = thought.ended and thought.reward is None
    return thought.reward or 0.0, hidden, 0.0 if thought.reward is not None else thought.value or 0.0

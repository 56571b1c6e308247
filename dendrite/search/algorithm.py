"""What a search algorithm is: it grows a tree in a session until it has an answer or the budget is spent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from dendrite.search.session import Session, Thought


class AlgorithmOptions(BaseModel):
    """Base of the frozen settings of the algorithms."""

    model_config = ConfigDict(frozen=True, extra="forbid")


OptionsT = TypeVar("OptionsT", bound=AlgorithmOptions)


class Algorithm(ABC, Generic[OptionsT]):
    """One run of an algorithm.

    `run` may be cancelled at any wait, which is how a deadline ends it; `best` and `nodes` then tell what it
    had.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[AlgorithmOptions]]

    def __init__(self, session: Session, options: OptionsT) -> None:
        self.session = session
        self.options = options

    @abstractmethod
    async def run(self) -> None:
        """Search until solved, out of budget, or out of things to try."""

    @abstractmethod
    def best(self) -> Thought | None:
        """The best rewarded terminal, else the terminal or leaf of the highest value; None if there is none."""

    @property
    @abstractmethod
    def nodes(self) -> int:
        """Size of the tree grown so far, its root included."""


def best_of(thoughts: Iterable[Thought]) -> Thought | None:
    """Pick the best rewarded terminal, else the highest value; the first among equals."""
    return max(thoughts, key=_worth, default=None)


def _worth(thought: Thought) -> tuple[float, float]:
    reward = thought.reward or 0.0
    return reward, 0.0 if thought.terminal or thought.value is None else thought.value

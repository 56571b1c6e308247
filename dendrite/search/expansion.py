"""What comes of expanding a thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dendrite.search.backend import Branch


@dataclass(frozen=True, slots=True)
class Child:
    """A child that came, and how it was judged: see `Thought` for what the fields say."""

    branch: Branch
    value: float | None
    reward: float | None
    ended: bool


@dataclass(frozen=True, slots=True)
class Expansion:
    """The children that came, and the reward calls that this took.

    There are none if the path had no room left in the model's context, or the task lists no more actions.
    """

    children: tuple[Child, ...] = ()
    reward_calls: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all children."""
        return sum(len(child.branch.tokens) for child in self.children)


def check_some_began(branches: Sequence[Branch]) -> None:
    """Raise what all of them failed with before their first token.

    They would again, and a search would never use its budget up.
    """
    errors = [branch.error for branch in branches if branch.error is not None and not branch.tokens]
    if errors and len(errors) == len(branches):
        raise errors[0]

"""What comes of expanding a thought."""

from __future__ import annotations

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

"""What comes of expanding a thought."""

from __future__ import annotations

from dataclasses import dataclass

from dendrite.search.backend import Branch


@dataclass(frozen=True, slots=True)
class Expansion:
    """The children that came, what each is worth, and the reward calls that this took.

    There are none if the path had no room left in the model's context, or the task lists no more actions.
    """

    branches: tuple[Branch, ...] = ()
    values: tuple[float | None, ...] = ()
    reward_calls: int = 0

"""What a search tree is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SOLVED = 1.0
"""The reward of a solved task."""


@dataclass(frozen=True, slots=True, eq=False)
class Thought:
    """A node of the search tree: one thought (a line, say), and the path that ends with it.

    `id` is 0 for the root and counts up in the order in which thoughts come. `text` is the whole path after the prompt,
    `step` the thought alone, `depth` the number of thoughts on the path. `logprobs` are the natural logs of the model's
    probabilities of `tokens` after the parent, at temperature 1. `value` is what the search's value source makes of the
    path, in [0, 1]. A path has `ended` by the task's rule, at the task's greatest depth, or where the model has ended
    the sequence; `reward` is then the task's, unless the search may not see it.
    """

    id: int = 0
    text: str = ""
    step: str = ""
    depth: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    value: float | None = None
    reward: float | None = None
    ended: bool = False
    parent: Thought | None = None

    @property
    def logprob(self) -> float:
        """Natural log of the model's probability of the whole thought."""
        return sum(self.logprobs)

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self.ended

    @property
    def worth(self) -> float | None:
        """The reward where the path has one that the search sees, else the value; None if there is neither."""
        return self.value if self.reward is None else self.reward

    @property
    def solved(self) -> bool:
        """Whether this is known to be a full solution."""
        return self.reward is not None and self.reward >= SOLVED

    @property
    def lineage(self) -> Iterator[Thought]:
        """This thought and those before it on its path, up to the root."""
        thought: Thought | None = self
        while thought is not None:
            yield thought
            thought = thought.parent

    @property
    def path_tokens(self) -> tuple[int, ...]:
        """The tokens of the path after the prompt."""
        return tuple(token for thought in reversed(list(self.lineage)) for token in thought.tokens)

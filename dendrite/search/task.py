"""What a search needs to know of the problem it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Task(ABC):
    """One problem, and the rule that judges texts written after its prompt.

    `text` below is always everything generated after the prompt, from the root of the tree to one node,
    special tokens left out. A task sees only the problem: it never holds or consults a known solution. The
    methods are pure, so that they may be called in any order, any number of times, and from several searches
    at once. A task pickles.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name of the problem, unique within its kind, for traces and reports."""

    @property
    @abstractmethod
    def prompt(self) -> str:
        """The text that the root of the tree is prefilled with."""

    @property
    @abstractmethod
    def stop(self) -> tuple[str, ...]:
        """Texts that end one thought, which keeps the text that ended it; none: a thought runs to the end."""

    @property
    @abstractmethod
    def max_step_tokens(self) -> int:
        """Most tokens one thought may take, at least 1."""

    @property
    @abstractmethod
    def max_depth(self) -> int:
        """Most thoughts on one path, at least 1."""

    @abstractmethod
    def is_terminal(self, text: str) -> bool:
        """Whether nothing that could follow `text` would change its reward: finished, or beyond repair."""

    @abstractmethod
    def reward(self, text: str) -> float:
        """The reward of `text` in [0, 1], by rule; 1 is solved. A text that is not finished may earn 0."""

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """The answer that `text` gives, None where it gives none. An answer may be given and wrong."""

"""Any task, with what is written held to a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dendrite.grammar.spec import Grammar
from dendrite.search.task import Split, Task


@dataclass(frozen=True, slots=True)
class Constrained(Task):
    """The problem of `task`, whose texts must follow `grammar`, whatever the task's own is."""

    task: Task
    held_to: Grammar

    @property
    def name(self) -> str:
        """That of the task."""
        return self.task.name

    @property
    def prompt(self) -> str:
        """That of the task."""
        return self.task.prompt

    @property
    def split(self) -> Split:
        """That of the task."""
        return self.task.split

    @property
    def max_depth(self) -> int:
        """That of the task."""
        return self.task.max_depth

    @property
    def oracle(self) -> bool:
        """That of the task."""
        return self.task.oracle

    @property
    def grammar(self) -> Grammar:
        """What texts are held to."""
        return self.held_to

    def is_terminal(self, text: str) -> bool:
        """As the task says."""
        return self.task.is_terminal(text)

    def reward(self, text: str) -> float:
        """As the task says."""
        return self.task.reward(text)

    def answer(self, text: str) -> str | None:
        """As the task says."""
        return self.task.answer(text)

    def actions(self, text: str) -> Sequence[str] | None:
        """As the task says."""
        return self.task.actions(text)

    def value(self, text: str) -> float | None:
        """As the task says."""
        return self.task.value(text)

    def reflect(self, text: str) -> str | None:
        """As the task says."""
        return self.task.reflect(text)

"""What a search needs to know of the problem it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from dendrite.errors import InvalidArgument
from dendrite.grammar.spec import Grammar
from dendrite.limits import check_whole


@dataclass(frozen=True, slots=True)
class Split:
    """Where a thought ends: at a stop text, which it keeps, or after `max_tokens` tokens.

    Without stop texts a thought runs to the end of the sequence or to `max_tokens`.

    Raises:
        InvalidArgument: `max_tokens` is below 1, or a stop text is empty.
    """

    max_tokens: int = 256
    stop: tuple[str, ...] = ("\n",)

    def __post_init__(self) -> None:
        check_whole("split.max_tokens", self.max_tokens, 1)
        stop: object = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise InvalidArgument("split.stop", self.stop, "must be a tuple of texts that are not empty")


class Task(ABC):
    """One problem, and the rule that judges texts written after its prompt.

    `prompt`, `is_terminal` and `reward` make a task; the rest has defaults. `text` below is always everything generated
    after the prompt, from the root of the tree to one node, special tokens left out. The methods are pure, so that they
    may be called in any order, any number of times, and from several searches at once. A task pickles.
    """

    @property
    def name(self) -> str:
        """A short name of the problem, unique within its kind, for traces and reports."""
        return type(self).__name__.lower()

    @property
    @abstractmethod
    def prompt(self) -> str:
        """The text that the root of the tree is prefilled with."""

    @property
    def split(self) -> Split:
        """Where a thought ends; a line of at most 256 tokens, unless said otherwise."""
        return Split()

    @property
    def max_depth(self) -> int:
        """Most thoughts on one path, at least 1."""
        return 64

    @property
    def grammar(self) -> Grammar | None:
        """What the text after the prompt must follow; None, unless said otherwise.

        It goes on from thought to thought, so a document may be many of them, and a path ends where nothing can follow.
        """
        return None

    @property
    def oracle(self) -> bool:
        """Whether `reward` consults a known answer, which the prompt alone does not tell.

        A search sees such rewards only where it is asked to (`oracle=True`), and its result says so.
        """
        return False

    @abstractmethod
    def is_terminal(self, text: str) -> bool:
        """Whether nothing that could follow `text` would change its reward: finished, or beyond repair."""

    @abstractmethod
    def reward(self, text: str) -> float:
        """The reward of `text` in [0, 1]; 1 is solved. A text that is not finished may earn 0."""

    def answer(self, text: str) -> str | None:
        """The answer that `text` gives, None where it gives none. An answer may be given and wrong."""
        return text.strip() if self.is_terminal(text) else None

    def actions(self, text: str) -> Sequence[str] | None:
        """The texts that may follow `text`, where the problem lists them: a node's children are then just these.

        None, unless said otherwise: the model proposes. An empty sequence: `text` has come to its end.
        """
        return None

    def value(self, text: str) -> float | None:
        """What the rule expects of an unfinished `text`, in [0, 1]; None where it has no estimate."""
        return None

    def reflect(self, text: str) -> str | None:
        """A question that goes after the finished `text` and asks what went wrong; None: there is none."""
        return None

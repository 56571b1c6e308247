"""Problems that may be posted: built-in kinds, and texts with a declared reward. Code is never accepted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from dendrite.errors import InvalidArgument
from dendrite.search.task import Split, Task
from dendrite.search.tasks.kinds import KINDS
from serve_apps.errors import HttpError
from serve_apps.schema_limits import check_schema
from serve_apps.schemas import Request, Stop, Text

_COUNTDOWN = re.compile(r"\s*Numbers: ((?:\d{1,4} ){1,5}\d{1,4})\. Target: (\d{1,6})\.\s*")

Whole: TypeAlias = Annotated[int, Field(strict=True)]


class CountdownProblem(Request):
    """Reach `target` from `numbers`."""

    kind: Literal["countdown"]
    numbers: Annotated[list[Whole], Field(max_length=16)]
    target: Whole


class Game24Problem(Request):
    """Reach 24 from four numbers."""

    kind: Literal["game24"]
    numbers: Annotated[list[Whole], Field(max_length=16)]


class ArithmeticProblem(Request):
    """Compute `a` `operator` `b`."""

    kind: Literal["arithmetic"]
    a: Whole
    b: Whole
    operator: Annotated[str, Field(max_length=8)]


class JsonSchemaProblem(Request):
    """Write a document that is valid under a schema of limited size, without patterns and references elsewhere."""

    kind: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")
    instruction: Text


class TextProblem(Request):
    """Continue `prompt` until the answer `contains` a text, or `equals` it but for outer blanks."""

    kind: Literal["text"]
    prompt: Annotated[Text, Field(min_length=1)]
    reward: Literal["contains", "equals"]
    text: Annotated[Text, Field(min_length=1)]
    stop: Annotated[tuple[Stop, ...], Field(max_length=16)] = ("\n",)
    max_tokens: Annotated[int, Field(ge=1, le=4_096, strict=True)] = 256
    """Of one thought."""
    max_depth: Annotated[int, Field(ge=1, le=64, strict=True)] = 8


Problem: TypeAlias = Annotated[
    CountdownProblem | Game24Problem | ArithmeticProblem | JsonSchemaProblem | TextProblem, Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True)
class DeclaredText(Task):
    """A text that is to contain, or to equal, another. The reward knows it: a search sees it only if asked to."""

    problem: TextProblem

    @property
    def name(self) -> str:
        """The kind of problem."""
        return f"text {self.problem.reward}"

    @property
    def prompt(self) -> str:
        """The text to continue."""
        return self.problem.prompt

    @property
    def split(self) -> Split:
        """As declared."""
        return Split(self.problem.max_tokens, self.problem.stop)

    @property
    def max_depth(self) -> int:
        """As declared."""
        return self.problem.max_depth

    @property
    def oracle(self) -> bool:
        """True: the reward compares with a known text."""
        return True

    def is_terminal(self, text: str) -> bool:
        """Whether the text has what was asked for."""
        return self.reward(text) == 1.0

    def reward(self, text: str) -> float:
        """1 for what was asked for, else 0."""
        if self.problem.reward == "contains":
            return float(self.problem.text in text)
        return float(text.strip() == self.problem.text.strip())


def task_of(problem: Problem) -> Task:
    """The task that a problem declares.

    Raises:
        InvalidArgument: it is out of range.
        HttpError: its schema is more than is accepted.
    """
    if isinstance(problem, TextProblem):
        return DeclaredText(problem)
    if isinstance(problem, JsonSchemaProblem):
        check_schema(problem.json_schema, "task.schema", in_python=True)
    fields = problem.model_dump(by_alias=True, exclude={"kind"})
    return KINDS[problem.kind](**fields)


def task_in(text: str) -> Task:
    """The problem that a text states in the packaged model's words, such as "Numbers: 3 7 8 25. Target: 99.".

    Raises:
        HttpError: it states none.
    """
    found = _COUNTDOWN.fullmatch(text)
    if found is None:
        told = (
            'a search takes a problem it can judge, such as "Numbers: 3 7 8 25. Target: 99."; others go to /v1/search'
        )
        raise HttpError(400, f"messages: {told}", param="messages", code="no_problem")
    try:
        return KINDS["countdown"]([int(number) for number in found[1].split()], int(found[2]))
    except InvalidArgument as error:
        raise InvalidArgument("messages", text, error.limit) from None

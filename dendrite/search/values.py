"""Where the value of an unfinished thought comes from."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, get_args, runtime_checkable

from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.backend import Backend, Branch
from dendrite.search.task import Task
from dendrite.search.thought import Thought

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A new child to be valued: what it is on the backend, its parent, and its whole `text` after the prompt."""

    parent: Thought
    branch: Branch
    text: str


@runtime_checkable
class ValueSource(Protocol):
    """Says what unfinished thoughts are worth.

    Called once for the new children of each expansion that returns, while others are in flight. A source that pickles
    serves searches on a cluster too.
    """

    @property
    def counted(self) -> bool:
        """Whether each text counts as one of `Budget.reward_calls`."""
        ...

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """A value in [0, 1] for each candidate; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class HeadValues:
    """The value head's estimates, which come with the forward pass; None where the model has no value head."""

    counted: ClassVar[bool] = False

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """See `ValueSource`."""
        return [each.branch.value for each in candidates]


@dataclass(frozen=True, slots=True)
class RuleValues:
    """What the task's rule expects (`Task.value`)."""

    counted: ClassVar[bool] = False

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """See `ValueSource`."""
        return [task.value(each.text) for each in candidates]


@dataclass(frozen=True, slots=True)
class LogprobValues:
    """The model's probability of a token of the path after the prompt, in the geometric mean: exp(mean log p)."""

    counted: ClassVar[bool] = False

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """See `ValueSource`."""
        return [_likelihood(each) for each in candidates]


def _likelihood(candidate: Candidate) -> float:
    logprobs = [*candidate.branch.logprobs]
    for thought in candidate.parent.lineage:
        logprobs.extend(thought.logprobs)
    if not logprobs:
        return 1.0
    return math.exp(min(0.0, math.fsum(logprobs) / len(logprobs)))  # rounding may put a sure token's a hair above 0


@dataclass(frozen=True, slots=True)
class JudgeValues:
    """The model as its own judge: the probability of `yes` against `no` after `question`, asked where the thought ends.

    The question and the answers continue the thought's own KV, so that only they are computed, and the children of an
    expansion are judged in one batch. The value is P(yes) / (P(yes) + P(no)), as Kadavath et al., 2022 (arXiv
    2207.05221) take P(True); None where the model's context has no room for the question.
    """

    question: str = "\nIs this on the way to a right answer? Answer:"
    yes: str = " yes"
    no: str = " no"
    counted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("question", "yes", "no"):
            if not getattr(self, name):
                raise InvalidArgument(f"values.{name}", getattr(self, name), "must not be empty")

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """See `ValueSource`."""
        texts = (self.question, self.yes, self.no)
        question, yes, no = await together(backend.tokenize(text, special=False) for text in texts)
        return await together(_judge(backend, each, question, yes, no) for each in candidates)


async def _judge(
    backend: Backend, candidate: Candidate, question: Sequence[int], yes: Sequence[int], no: Sequence[int]
) -> float | None:
    try:
        [asked] = await backend.append(candidate.branch.node, [question])
    except ContextOverflow:
        return None
    try:
        scores = await together(backend.score(asked.node, answer) for answer in (yes, no))
    except ContextOverflow:
        return None
    finally:
        await backend.release(asked.node)
    first, second = map(math.fsum, scores)
    return 1.0 / (1.0 + math.exp(min(second - first, 700.0)))


Valuation: TypeAlias = Callable[[str, str], float | Awaitable[float | None] | None]
"""The prompt and the text after it -> a value in [0, 1], or None; at once or to be awaited."""


@dataclass(frozen=True, slots=True)
class CallableValues:
    """A function of the prompt and the text so far, synchronous or not.

    The awaited calls of one expansion run together; when one raises, the others are cancelled. A synchronous function
    keeps the event loop, and all that is in flight, waiting while it runs.
    """

    function: Valuation
    counted: ClassVar[bool] = True

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """See `ValueSource`."""
        return await together(self._value(task.prompt, each.text) for each in candidates)

    async def _value(self, prompt: str, text: str) -> float | None:
        answer = self.function(prompt, text)
        return await answer if inspect.isawaitable(answer) else answer


ValueName: TypeAlias = Literal["head", "rule", "logprob", "judge"]
Values: TypeAlias = ValueName | ValueSource | Valuation


def value_source(values: Values) -> ValueSource:
    """The source that a name, a source or a function stands for.

    Raises:
        InvalidArgument: It is none of them.
    """
    named: dict[object, ValueSource] = {
        "head": HeadValues(),
        "rule": RuleValues(),
        "logprob": LogprobValues(),
        "judge": JudgeValues(),
    }
    if isinstance(values, str) and values in named:
        return named[values]
    if isinstance(values, ValueSource) and not isinstance(values, type):
        return values
    if callable(values) and not isinstance(values, type):
        return CallableValues(values)
    raise InvalidArgument(
        "values", values, f"must be one of {', '.join(get_args(ValueName))}, a ValueSource or a function"
    )


async def valued(
    source: ValueSource, task: Task, backend: Backend, candidates: Sequence[Candidate]
) -> list[float | None]:
    """Ask a source, and check what it says.

    Raises:
        InvalidArgument: It gave another number of values, or one that is not in [0, 1].
    """
    if not candidates:
        return []
    values = await source.values(task, backend, candidates)
    if not isinstance(values, Iterable) or len(values := list(values)) != len(candidates):
        raise InvalidArgument("values", values, f"must be {len(candidates)} values, one for each thought")
    return [_checked(value) for value in values]


def _checked(value: object) -> float | None:
    if value is None:
        return None
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not 0.0 <= number <= 1.0:
        raise InvalidArgument("values", value, "a value must be a number in [0, 1]")
    return number


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all, side by side. When one raises, or the caller is cancelled, none goes on: the others end first."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

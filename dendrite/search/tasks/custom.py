"""Problems of one's own: a Python file that judges texts, and a JSONL file with a problem on each line.

The file defines one class derived from `dendrite.search.Task`, whose constructor takes a line's fields by name:

    class Acrostic(Task):
        def __init__(self, word: str) -> None: ...

or, for less, a function. A line then has a `prompt`; those of its other fields that `reward` has parameters for go
there:

    def reward(prompt: str, text: str, word: str) -> float:
        return float([line[:1] for line in text.splitlines()] == list(word))

Beside it the file may define `is_terminal(prompt, text)`, which takes fields in the same way (without it, a text ends
where the model ends it), `split` (a `dendrite.search.Split`), `max_depth` (a whole number) and `oracle` (True or
False). What these functions take beyond the prompt is held to be a known answer, unless `oracle = False` says that it
isn't.

The file is run on its own, on every machine that searches: it imports what is installed there, not its neighbours.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from dendrite.errors import DendriteError, InvalidArgument
from dendrite.search.task import Split, Task
from dendrite.search.tasks.source import Source, TaskFileError

Fields: TypeAlias = Mapping[str, Any]
"""What one line holds."""


class PromptError(DendriteError):
    """A problem cannot be read or made: names the file (where known), the line (None: the whole file) and why."""

    def __init__(self, file: str | None, line: int | None, reason: str) -> None:
        self.file, self.line, self.reason = file, line, reason
        places = [] if file is None else [file]
        places += [] if line is None else [f"line {line}"]
        super().__init__(f"{', '.join(places)}: {reason}")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file: an object on each line. Blank lines may only come last.

    Raises:
        PromptError: The file can't be read, or a line is no JSON object.
    """
    try:
        text = path.read_text("utf-8").rstrip()
    except OSError as error:
        raise PromptError(str(path), None, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise PromptError(str(path), None, f"must be UTF-8: {error}") from error
    lines = text.split("\n") if text else []
    return [_parse(str(path), number, line) for number, line in enumerate(lines, 1)]


def _parse(file: str, number: int, line: str) -> dict[str, Any]:
    if not line.strip():
        raise PromptError(file, number, "is blank")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(file, number, f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise PromptError(file, number, "must be a JSON object")
    return fields


def load_tasks(file: Path, prompts: Iterable[Fields]) -> list[Task]:
    """Make a task of each of `prompts` by the Python file `file`, which is run.

    A task pickles with the text of the file, and is made from it again where the file may not be. Its rewards are
    checked: one that is no number in [0, 1] raises `InvalidArgument` in the search.

    Args:
        file: Defines a class or functions, as this module's description says.
        prompts: The fields of each line, counted from 1 in errors.

    Raises:
        TaskFileError: There is no such file, it doesn't run, or it doesn't define one kind of task.
        PromptError: A line lacks a field or has one too many, or the task refuses what it holds.
    """
    source = Source.read(file)
    _kind(source)
    return [CustomTask(source, fields, line) for line, fields in enumerate(prompts, 1)]


@dataclass(frozen=True)
class CustomTask(Task):
    """A problem that a user's file defines, with what the file returns checked."""

    source: Source
    fields: Fields = field(hash=False)
    line: int
    _task: Task = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.fields, Mapping):
            raise PromptError(None, self.line, "must be a JSON object")
        object.__setattr__(self, "fields", dict(self.fields))
        kind = _kind(self.source)
        try:
            task = kind(self.fields)
            _check_settings(task)
        except _Unfit as error:
            raise PromptError(None, self.line, str(error)) from error
        except Exception as error:
            raise PromptError(None, self.line, f"{self.source.file}: {type(error).__name__}: {error}") from error
        object.__setattr__(self, "_task", task)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out the task itself, whose class can't be imported elsewhere."""
        return type(self), (self.source, self.fields, self.line)

    @property
    def name(self) -> str:
        """The task's own name; that of a file with `reward` is the file's, and the line."""
        return f"{Path(self.source.file).stem} {self.line}" if isinstance(self._task, _RewardTask) else self._task.name

    @property
    def prompt(self) -> str:
        """As the file has it."""
        return self._task.prompt

    @property
    def split(self) -> Split:
        """As the file has it."""
        return self._task.split

    @property
    def max_depth(self) -> int:
        """As the file has it."""
        return self._task.max_depth

    @property
    def oracle(self) -> bool:
        """As the file has it."""
        return self._task.oracle

    def is_terminal(self, text: str) -> bool:
        """As the file judges it."""
        ended = self._task.is_terminal(text)
        if ended not in (True, False):
            raise InvalidArgument("is_terminal", ended, f"must be True or False; {self._place}")
        return bool(ended)

    def reward(self, text: str) -> float:
        """As the file judges it, in [0, 1]."""
        return self._share("reward", self._task.reward(text))

    def answer(self, text: str) -> str | None:
        """As the file reads it."""
        return self._task.answer(text)

    def actions(self, text: str) -> Sequence[str] | None:
        """As the file lists them."""
        return self._task.actions(text)

    def value(self, text: str) -> float | None:
        """As the file estimates it, in [0, 1]."""
        value = self._task.value(text)
        return None if value is None else self._share("value", value)

    def reflect(self, text: str) -> str | None:
        """As the file asks."""
        return self._task.reflect(text)

    def _share(self, what: str, value: object) -> float:
        number: Any = value if isinstance(value, Real) else None
        if number is None or not 0 <= number <= 1:
            raise InvalidArgument(what, value, f"must be a number in [0, 1]; {self._place}")
        return float(number)

    @property
    def _place(self) -> str:
        return f"so {self.source.file} has it for line {self.line}"


class _Unfit(DendriteError):
    """A line's fields are not those that the file asks for."""


def _check_settings(task: Task) -> None:
    """Refuse what a search would trip over later."""
    for name, text in (("name", task.name), ("prompt", task.prompt)):
        if not isinstance(text, str):
            raise _Unfit(f"{name}={text!r}: must be a text")
    if not isinstance(task.split, Split):
        raise _Unfit(f"split={task.split!r}: must be a Split")
    if not isinstance(task.max_depth, int) or isinstance(task.max_depth, bool) or task.max_depth < 1:
        raise _Unfit(f"max_depth={task.max_depth!r}: must be a whole number, at least 1")
    if not isinstance(task.oracle, bool):
        raise _Unfit(f"oracle={task.oracle!r}: must be True or False")


def _kind(source: Source) -> Callable[[Fields], Task]:
    """What makes a task of a line's fields: the file's one class, or its functions."""
    module = source.module()
    defined = {each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__}
    classes = sorted((each for each in defined if issubclass(each, Task)), key=lambda each: each.__qualname__)
    found = [each.__qualname__ for each in classes] + ["reward"] * ("reward" in vars(module))
    if len(found) != 1:
        limit = "must define one class derived from Task, or a function reward"
        raise TaskFileError(source.file, None, f"{limit}, but defines {' and '.join(found) or 'neither'}")
    if not classes:
        return _function_kind(source.file, module)
    if inspect.isabstract(classes[0]):
        lacking = ", ".join(sorted(classes[0].__abstractmethods__))
        raise TaskFileError(source.file, None, f"{found[0]} must define {lacking}")

    def make(fields: Fields) -> Task:
        _fit(classes[0], **fields)
        task: Task = classes[0](**fields)
        return task

    return make


def _function_kind(file: str, module: ModuleType) -> Callable[[Fields], Task]:
    for name in ("reward", "is_terminal"):
        if not callable(getattr(module, name, _never)):
            raise TaskFileError(file, None, f"{name} must be a function")
    try:
        _check_settings(_RewardTask(module, {"prompt": ""}, {}, {}))
    except _Unfit as error:
        raise TaskFileError(file, None, str(error)) from error

    def make(fields: Fields) -> Task:
        if "prompt" not in fields:
            raise _Unfit("missing the field 'prompt'")
        others = [_others(getattr(module, name, _never), fields) for name in ("reward", "is_terminal")]
        return _RewardTask(module, fields, *others)

    return make


def _others(function: Callable[..., Any], fields: Fields) -> Fields:
    """The fields beside the prompt that `function` has parameters for, after the prompt and the text."""
    parameters = list(inspect.signature(function).parameters.values())
    named = {each.name for each in parameters[2:] if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        named |= fields.keys() - {"prompt"}
    others = {name: value for name, value in fields.items() if name in named}
    _fit(function, "", "", **others)
    return others


def _fit(function: Callable[..., Any], /, *given: str, **fields: Any) -> None:
    try:
        inspect.signature(function).bind(*given, **fields)
    except TypeError as error:
        raise _Unfit(f"{function.__name__}: {error}") from error


def _never(prompt: str, text: str) -> bool:
    """Leave it to the model to end a text."""
    return False


class _RewardTask(Task):
    """A problem of a file that defines `reward`."""

    def __init__(self, module: ModuleType, fields: Fields, reward: Fields, is_terminal: Fields) -> None:
        self._module, self._prompt = module, fields["prompt"]
        self._reward, self._is_terminal = reward, is_terminal

    @property
    def prompt(self) -> str:
        return self._prompt  # type: ignore[no-any-return]

    @property
    def split(self) -> Split:
        return getattr(self._module, "split", super().split)

    @property
    def max_depth(self) -> int:
        return getattr(self._module, "max_depth", super().max_depth)

    @property
    def oracle(self) -> bool:
        return getattr(self._module, "oracle", bool(self._reward or self._is_terminal))

    def is_terminal(self, text: str) -> bool:
        ended: bool = getattr(self._module, "is_terminal", _never)(self._prompt, text, **self._is_terminal)
        return ended

    def reward(self, text: str) -> float:
        reward: float = self._module.reward(self._prompt, text, **self._reward)
        return reward

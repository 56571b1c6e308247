"""The built-in tasks by name, each made from the fields of a line of a problem file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dendrite.errors import InvalidArgument
from dendrite.search.task import Task
from dendrite.search.tasks.arithmetic import Arithmetic
from dendrite.search.tasks.countdown import Countdown
from dendrite.search.tasks.custom import PromptError, load_tasks
from dendrite.search.tasks.game24 import Game24


def _json_schema(schema: Mapping[str, Any], instruction: str) -> Task:
    from dendrite.search.tasks.json_schema import JsonSchema  # takes 0.2 s to import

    return JsonSchema(schema, instruction)


KINDS: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {"countdown": Countdown, "game24": Game24, "arithmetic": Arithmetic, "json_schema": _json_schema}
)
"""By name, what makes a task of its fields."""


def tasks_of(kind: str, prompts: Iterable[Mapping[str, Any]]) -> list[Task]:
    """Make a task of each of `prompts`: of a built-in kind, or by the user's Python file that `kind` names.

    Raises:
        InvalidArgument: There is no such kind, and it is no Python file.
        TaskFileError: See `load_tasks`.
        PromptError: A line lacks a field or has one too many, or the task refuses what it holds.
    """
    if kind in KINDS:
        return [_make(KINDS[kind], fields, line) for line, fields in enumerate(prompts, 1)]
    if not kind.endswith(".py"):
        raise InvalidArgument("task", kind, f"must be a Python file, or one of {', '.join(KINDS)}")
    return load_tasks(Path(kind), prompts)


def _make(make: Callable[..., Task], fields: Mapping[str, Any], line: int) -> Task:
    try:
        signature(make).bind(**fields)
        return make(**fields)
    except (TypeError, InvalidArgument) as error:
        raise PromptError(None, line, str(error)) from error

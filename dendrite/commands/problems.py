"""What commands that search problems take alike: the problems, the budget, the algorithm's settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dendrite.errors import InvalidArgument
from dendrite.job_file import digest, task_digest
from dendrite.search.budget import Budget
from dendrite.search.run import DEFAULT_BUDGET
from dendrite.search.task import Task
from dendrite.search.tasks import TASKS
from dendrite.search.tasks.custom import CustomTask, PromptError, read_prompts
from dendrite.search.tasks.kinds import tasks_of

DEFAULT_COUNT = 20
"""Problems that are drawn, if not told otherwise."""


@dataclass(frozen=True, slots=True)
class Problems:
    """Problems, a digest of each, and one of the Python file that judges them, if one does."""

    tasks: Sequence[Task]
    inputs: tuple[str, ...]
    task_digest: str | None


def load_problems(file: Path | None, task: str, count: int | None, seed: int) -> Problems:
    """The problems of a JSONL file, or drawn ones.

    Args:
        file: with the fields of a problem on each line; None draws problems.
        task: a kind of problem (a key of `TASKS` to draw, of `KINDS` for a file), or the path of a Python file.
        count: how many are drawn.
        seed: of the drawing.

    Raises:
        InvalidArgument: the arguments don't go together, or there is no problem.
        PromptError: a line can't be read, or is no such problem.
        TaskFileError: the Python file can't be used.
    """
    if file is None:
        if task not in TASKS:
            raise InvalidArgument("task", task, f"without a file of problems must be one of {', '.join(TASKS)}")
        drawn = TASKS[task](DEFAULT_COUNT if count is None else count, seed)
        return Problems(drawn, tuple(map(task_digest, drawn)), None)
    if count is not None:
        raise InvalidArgument("count", count, "goes with drawn problems, not with a file")
    lines = read_prompts(file)
    if not lines:
        raise InvalidArgument("problems", str(file), "must hold at least one problem")
    inputs = tuple(map(digest, lines))
    try:
        tasks = tasks_of(task, lines)
    except PromptError as error:
        raise PromptError(str(file), error.line, error.reason) from error
    source = tasks[0].source.text if isinstance(tasks[0], CustomTask) else None
    return Problems(tasks, inputs, None if source is None else hashlib.sha256(source.encode()).hexdigest())


def parse_budget(
    tokens: int | None,
    seconds: float | None,
    expansions: int | None,
    reward_calls: int | None,
    kv_mib: float | None,
) -> Budget:
    """The budget of a problem; without any limit that ends a search, the usual number of tokens.

    Raises:
        InvalidArgument: a limit is not positive.
    """
    if tokens is seconds is expansions is reward_calls is None:
        tokens = DEFAULT_BUDGET.tokens
    if kv_mib is not None and not 0 < kv_mib < math.inf:
        raise InvalidArgument("kv_mib", kv_mib, "must be a positive number, and finite")
    kv_bytes = None if kv_mib is None else int(kv_mib * (1 << 20))
    return Budget(tokens, seconds, expansions, reward_calls, kv_bytes)


def parse_options(given: Iterable[str]) -> dict[str, Any]:
    """The algorithm's settings, of texts such as in_flight=16; what is no JSON is taken as a text.

    Raises:
        InvalidArgument: one is no NAME=VALUE.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, found, value = text.partition("=")
        if not found or not name:
            raise InvalidArgument("option", text, "must be NAME=VALUE, such as in_flight=16")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = value
    return options

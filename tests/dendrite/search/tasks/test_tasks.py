from __future__ import annotations

import pickle

import pytest

from dendrite.errors import InvalidArgument
from dendrite.search.task import Task
from dendrite.search.tasks import TASKS


def test_the_kinds() -> None:
    assert set(TASKS) == {"arithmetic", "countdown", "game24"}


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_draws_distinct_tasks_that_pickle(kind: str) -> None:
    drawn = TASKS[kind](5, 3)
    assert drawn == TASKS[kind](5, 3)
    assert len({task.name for task in drawn}) == 5
    for task in drawn:
        assert isinstance(task, Task)
        assert task.name.startswith(f"{kind} ")
        assert pickle.loads(pickle.dumps(task)) == task
        assert not task.is_terminal("")
        assert task.reward("") == 0.0


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(("n", "seed", "name"), [(0, 0, "n"), (1, -1, "seed")])
def test_every_kind_refuses_bad_numbers_by_name(kind: str, n: int, seed: int, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        TASKS[kind](n, seed)
    assert caught.value.field == name

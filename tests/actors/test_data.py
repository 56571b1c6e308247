"""Searches as a step of a Ray Data pipeline."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from actors import Cluster, data
from actors.fleet import RecoveryOptions
from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.search.budget import Budget
from dendrite.search.task import Task
from dendrite.search.tasks import Countdown

REWARD = """
from dendrite.search import Split

split = Split(max_tokens=6)
max_depth = 2


def reward(prompt: str, text: str, letter: str) -> float:
    if letter == "!":
        raise ConnectionError("the judge is busy")
    return float(letter in text)
"""
BUDGET = Budget(tokens=60)
RESULT = {"solved", "reward", "text", "answer", "tokens", "expansions", "seconds", "stop_reason", "error"}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pyarrow is missing: .*pip install 'dendrite\[data\]'"):
        data.search(None, task="task.py")  # type: ignore[arg-type]


installed = pytest.mark.skipif(
    not (find_spec("pyarrow") and find_spec("pandas")), reason="Ray Data needs pyarrow and pandas"
)


@pytest.fixture
def rows(ray_here: None) -> Any:
    """Makes a dataset of rows."""
    from ray.data import DataContext, from_items

    DataContext.get_current().enable_progress_bars = False
    return from_items


def countdown(row: Mapping[str, Any]) -> Task:
    return Countdown(tuple(row["numbers"]), row["target"])


@installed
def test_rows_get_their_results_from_engines_of_a_pool(rows: Any, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(REWARD)
    letters = ["a", "!", "z", "e", "q"]
    dataset = rows([{"question": f"{letter}?\n", "letter": letter, "answer": "own"} for letter in letters])
    found = data.search(
        dataset,
        task=tmp_path / "task.py",
        column="question",
        budget=BUDGET,
        model=tiny_model,
        batch_rows=2,
        oracle=True,
        in_flight=2,
    ).take_all()
    assert sorted(row["letter"] for row in found) == sorted(letters)
    for row in found:
        assert set(row) == {"question", "letter", "answer"} | {f"search_{name}" for name in RESULT}
        assert row["answer"] == "own"
        if row["letter"] == "!":
            assert row["search_error"] == "ConnectionError: the judge is busy"
            assert row["search_tokens"] is row["search_solved"] is None
        else:
            assert row["search_error"] is None
            assert 0 < row["search_tokens"] <= 60
            assert row["search_solved"] == (row["letter"] in row["search_text"]) == (row["search_reward"] == 1)


@installed
async def test_rows_are_searched_on_a_cluster(rows: Any, cluster: Cluster) -> None:
    dataset = rows(
        [{"numbers": [3, 4], "target": 7}, {"numbers": [1, 2, 3], "target": 6}, {"numbers": [], "target": 1}]
    )
    found = data.search(dataset, task=countdown, budget=BUDGET, cluster=cluster, prefix="").take_all()
    by_target = {row["target"]: row for row in found}
    assert by_target[1]["error"].startswith("InvalidArgument: numbers")
    assert all(0 < by_target[target]["tokens"] <= 60 for target in (7, 6))
    assert (
        sum(worker.engine.decode_tokens for worker in await cluster.worker_stats(fresh=True)) >= by_target[6]["tokens"]
    )


def test_searches_on_a_cluster_take_as_much_trouble_as_that_does() -> None:
    recovery = RecoveryOptions(attempts=1)
    client = data.ClusterPlace(None, [], recovery, "never").client(1)
    assert client._fleet.options is recovery
    assert client.replicator.policy == "never"


def test_a_cluster_s_own_options_are_taken_over(cluster: Cluster) -> None:
    place = data.ClusterPlace.of(cluster)
    assert (place.recovery, place.replication) == (cluster.recovery_options, "never")


@installed
def test_wrong_arguments_are_named(rows: Any) -> None:
    dataset = rows([{"numbers": [3, 4], "target": 7, "search_text": ""}])
    wrong: list[dict[str, Any]] = [
        {"pool": 0},
        {"batch_rows": 0},
        {"concurrency": 0},
        {"algorithm": "luck"},
        {"sea": 1},
    ]
    for arguments in [*wrong, {"prefix": "search_"}]:
        with pytest.raises(InvalidArgument, match=next(iter(arguments))):
            data.search(dataset.materialize(), task=countdown, **arguments)

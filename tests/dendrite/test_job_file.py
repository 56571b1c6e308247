"""The file of a job's results keeps to one line an input, wherever it is cut."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import Cancelled, InvalidArgument
from dendrite.job_file import Contents, JobFile, JobFileError, digest, task_digest
from dendrite.job_lock import JobLocked
from dendrite.jobs import Outcome
from dendrite.search.result import SearchResult
from dendrite.search.tasks.countdown import Countdown
from tests.full_disk import full_disk

TASKS = [Countdown((1, number), 1 + number) for number in range(2, 10)]
INPUTS = [task_digest(task) for task in TASKS]


def outcome(index: int, *, failed: bool = False, tokens: int = 5) -> Outcome:
    task = TASKS[index]
    if failed:
        return Outcome(index, task, None, Cancelled("given up\nat once"))
    solved = index % 2 == 0
    result = SearchResult("mcts", task.name, 0, solved, float(solved), "é\n", None, tokens, 1, 0.1, 2, "tokens")
    return Outcome(index, task, result)


def indices(path: Path) -> list[int]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["index"] for line in text.splitlines()]


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(len(TASKS))),
    failed=st.sets(st.integers(0, len(TASKS) - 1)),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    sort=st.booleans(),
)
def test_one_line_an_input_wherever_the_file_is_cut(
    order: list[int], failed: set[int], cuts: list[float], sort: bool
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "o.jsonl"
        for cut in [*cuts, None]:
            kept = path.read_bytes() if path.exists() else b""
            kept = kept[: kept.rfind(b"\n") + 1]
            with JobFile(path, INPUTS) as file:
                for index in order:
                    if index in file.pending():
                        file.write(outcome(index, failed=index in failed), 1)
            assert path.read_bytes().startswith(kept), "what was written whole stays"
            assert sorted(indices(path)) == list(range(len(TASKS)))
            if cut is not None:
                path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
        with JobFile(path, INPUTS) as file:
            assert file.pending() == []
            assert file.pending(retry_failed=True) == sorted(failed)
            for index in failed:
                file.write(outcome(index), 2)
            file.compact(sort=sort)
            assert file.contents == Contents.read(path)
            assert (file.contents.failed, file.contents.lines) == (0, len(TASKS))
        assert sorted(indices(path)) == list(range(len(TASKS)))
        assert not sort or indices(path) == list(range(len(TASKS)))


def test_sums_count_each_problem_once(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with JobFile(path, INPUTS) as file:
        file.write(outcome(2, tokens=7), 1)
        file.write(outcome(1, failed=True), 3)
        file.write(outcome(0, failed=True), 3)
        contents = file.contents
        assert (contents.solved, contents.failed, contents.tokens) == (1, 2, 7)
        assert contents.first_error == "Cancelled: given up\nat once"
        file.write(outcome(0), 2)
        assert (contents.solved, contents.failed, contents.tokens, contents.lines) == (2, 1, 12, 4)
        assert contents.entries[0].attempts == 5
        assert Contents.read(path) == contents
        file.compact()
        assert indices(path) == [2, 1, 0]
        file.write(outcome(3), 1)
        assert indices(path) == [2, 1, 0, 3]
    elapsed = [json.loads(line)["elapsed"] for line in path.read_text().splitlines()]
    with JobFile(path, INPUTS) as file:
        assert file.run.elapsed == max(elapsed)


def test_a_compaction_that_was_killed_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with JobFile(path, INPUTS) as file:
        file.write(outcome(1), 1)
        file.write(outcome(0), 1)
        (tmp_path / "o.jsonl.new").write_bytes(path.read_bytes()[:40])
        file.compact(sort=True)
    assert indices(path) == [0, 1]
    assert [each.name for each in tmp_path.iterdir()] == ["o.jsonl"]


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with JobFile(tmp_path / "o.jsonl", INPUTS), pytest.raises(JobLocked):
        JobFile(tmp_path / "o.jsonl", INPUTS)
    JobFile(tmp_path / "o.jsonl", INPUTS).close()


def test_other_files_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with JobFile(path, INPUTS) as file:
        file.write(outcome(0), 1)
        file.write(outcome(7), 1)
    whole = path.read_bytes()
    with pytest.raises(JobFileError, match=r"index 0 is of another problem"):
        JobFile(path, ["0" * 16, *INPUTS[1:]])
    with pytest.raises(JobFileError, match=r"index 7, beyond"):
        JobFile(path, INPUTS[:7])
    assert path.read_bytes() == whole
    wrong = [
        '{"prompt": "x"}',
        "[]",
        "no JSON",
        '{"index": 0, "input": "x", "attempts": 1, "elapsed": 0, "error": "E"}',
    ]
    for text in wrong:
        path.write_bytes(whole + text.encode() + b"\n")
        with pytest.raises(JobFileError, match=r"line 3: is no result of a job"):
            JobFile(path, INPUTS)
        assert path.read_bytes() == whole + text.encode() + b"\n"
    path.unlink()
    path.mkdir()
    with pytest.raises((JobFileError, InvalidArgument), match=r"o\.jsonl"):
        JobFile(path, INPUTS)


def test_a_digest_is_of_the_content() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert len(set(INPUTS)) == len(INPUTS)


def test_a_line_that_the_disk_had_no_room_for_leaves_no_part_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with JobFile(path, INPUTS) as file:
        file.write(outcome(0), 1)
        with full_disk(path.stat().st_size + 20), pytest.raises(JobFileError, match=r"o\.jsonl: cannot be written"):
            file.write(outcome(1), 1)
        assert (file.pending()[0], indices(path)) == (1, [0])
        file.write(outcome(1), 1)
        assert indices(path) == [0, 1]
        assert Contents.read(path) == file.contents

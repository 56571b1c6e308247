from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dendrite.errors import DendriteError, InvalidArgument
from dendrite.job_file import JobFileError
from dendrite.job_lock import JobLocked, lock_path
from dendrite.job_manifest import JobArguments, JobManifest, manifest_path, open_job
from dendrite.jobs import Outcome
from dendrite.search.tasks.countdown import Countdown

INPUTS = ("a", "b", "c")
ARGUMENTS = JobArguments(
    problems="/p.jsonl",
    task="/t.py",
    count=None,
    algorithm="mcts",
    option={"in_flight": 2},
    values="head",
    oracle=False,
    budget={"tokens": 300},
    seed=1,
    traces=None,
    model="countdown",
    attempts=3,
    workers=2,
    local=True,
    concurrency=8,
    sort=False,
)


def manifest(inputs: tuple[str, ...] = INPUTS, task: str | None = "t", **arguments: Any) -> JobManifest:
    return JobManifest.make("1.0", inputs, task, ARGUMENTS.model_copy(update=arguments))


def test_a_job_is_taken_up_as_it_was_begun(tmp_path: Path) -> None:
    out = tmp_path / "jobs" / "o.jsonl"
    open_job(out, manifest(), INPUTS).close()
    assert JobManifest.read(out) == manifest()
    elsewhere = manifest(workers=8, local=False, concurrency=1, attempts=1, sort=True)
    open_job(out, elsewhere, INPUTS).close()
    assert JobManifest.read(out) == manifest(), "where it runs is no part of what it is"
    assert sorted(path.name for path in out.parent.iterdir()) == ["o.jsonl", "o.jsonl.job.json"]


@pytest.mark.parametrize(
    ("other", "inputs", "named"),
    [
        (manifest(seed=2), INPUTS, "^seed=2: .* begun with 1;"),
        (manifest(option={"in_flight": 3}), INPUTS, "^option="),
        (manifest(budget={"seconds": 1.0}), INPUTS, "^budget="),
        (manifest(model="other"), INPUTS, "^model="),
        (manifest(oracle=True), INPUTS, "^oracle="),
        (manifest(traces="/traces"), INPUTS, "^traces="),
        (manifest(task="u"), INPUTS, "^task='/t.py': the file has changed"),
        (manifest(("a", "b", "c", "d")), ("a", "b", "c", "d"), r"^problems='/p.jsonl': .* 3 problems, .* there are 4"),
        (manifest(("a", "x", "c")), ("a", "x", "c"), r"^problems='/p.jsonl': have changed .* line 2 for one"),
        (manifest(("a", "b", "x")), ("a", "b", "x"), r"^problems='/p.jsonl': have changed since the job was begun$"),
    ],
)
def test_what_has_changed_is_named(other: JobManifest, inputs: tuple[str, ...], named: str, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with open_job(out, manifest(), INPUTS) as file:
        file.write(Outcome(1, Countdown((3, 4), 7), None, DendriteError("no")), 1)
    before = out.read_bytes()
    with pytest.raises(InvalidArgument, match=named):
        open_job(out, other, inputs)
    assert out.read_bytes() == before
    assert not lock_path(out).exists()


def test_nothing_of_others_is_written_over(tmp_path: Path) -> None:
    out, traces = tmp_path / "o.jsonl", tmp_path / "traces"
    out.write_text("mine\n")
    with pytest.raises(InvalidArgument, match=r"out=.* is not of a job"):
        open_job(out, manifest(), INPUTS)
    assert out.read_text() == "mine\n"
    out.unlink()
    traces.mkdir()
    (traces / "00000.jsonl").touch()
    with pytest.raises(InvalidArgument, match="traces="):
        open_job(out, manifest(traces=str(traces)), INPUTS)
    assert [path.name for path in tmp_path.iterdir()] == ["traces"]


def test_a_second_process_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with open_job(out, manifest(), INPUTS), pytest.raises(JobLocked):
        open_job(out, manifest(seed=2), INPUTS)
    assert JobManifest.read(out) == manifest()


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with pytest.raises(InvalidArgument, match=r"out=.* holds no job"):
        JobManifest.read(out)
    manifest().write(out)
    whole = manifest_path(out).read_text()
    for text in ("", whole[:-9], "[]", whole.replace('"format": 1', '"format": 2'), whole.replace("seed", "sea")):
        manifest_path(out).write_text(text)
        with pytest.raises(JobFileError, match=r"o\.jsonl\.job\.json: is no job of this version"):
            JobManifest.read(out)

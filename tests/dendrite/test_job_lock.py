from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dendrite.errors import InvalidArgument
from dendrite.job_lock import JobLock, JobLocked, Run, lock_path, running

ROOT = Path(__file__).parents[2]


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "new" / "o.jsonl"
    assert running(out) == (False, None)
    with JobLock(out) as lock:
        assert running(out) == (True, None)
        run = Run.begin(3, 1.5, 7)
        lock.tell(run)
        assert running(out) == (True, run)
        with pytest.raises(JobLocked, match=rf"o\.jsonl is being written by process {run.pid} on"):
            JobLock(out)
    assert running(out) == (False, None)
    assert not lock_path(out).exists()
    JobLock(out).close()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    program = f"""
import time
from pathlib import Path
from dendrite.job_lock import JobLock
lock = JobLock(Path({str(out)!r}))
print("held", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(JobLocked):
        JobLock(out)
    holder.kill()
    holder.communicate()
    assert lock_path(out).exists()
    assert running(out) == (False, None)
    with JobLock(out):
        assert running(out)[0]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="out"):
        JobLock(tmp_path / "file" / "o.jsonl")


def test_the_end_is_estimated_by_the_pace_of_the_run() -> None:
    run = Run(1, "here", began=0.0, lines=10, elapsed=100.0, pending=8)
    assert run.eta(10) is None
    assert run.eta(12) == pytest.approx((run.seconds - 100.0) / 2 * 6, rel=1e-3)
    assert run.eta(18) == 0.0
    assert Run.begin(10, 100.0, 0).eta(10) == 0.0

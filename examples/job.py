"""A job of six problems that is interrupted after three, and taken up by another run, which does the other three.

Each result is on the disk before the next is waited for, so that the end may come at any time and in any way. On the
command line this is `dendrite job run`, `status` and `resume`. Run it with `python examples/job.py`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

from dendrite import Budget, Engine
from dendrite.job_file import Contents, JobFile, task_digest
from dendrite.job_runner import Searches, run_job
from dendrite.jobs import LocalSolver
from dendrite.search.tasks.countdown import problems

TASKS = problems(6, seed=1)
SEARCHES = Searches("mcts", Budget(tokens=300), seed=0)


async def work(engine: Engine, out: Path, most: int) -> None:
    """Search the problems that have no result in `out` yet, but leave off after so many."""
    with JobFile(out, [task_digest(task) for task in TASKS]) as file:
        print(f"{len(file.pending())} problems to go")
        outcomes = run_job(LocalSolver(engine), file, TASKS, SEARCHES, concurrency=2, traces=out.with_suffix(".traces"))
        async with aclosing(outcomes):  # cancels what is under way, which goes on from its trace the next time
            async for outcome in outcomes:
                print(f"  {outcome.index}: {outcome.result.answer if outcome.result is not None else outcome.error}")
                most -= 1
                if not most:
                    break


def main() -> Contents:
    """Run the job in two parts; return what is in its file in the end."""
    with TemporaryDirectory() as folder, Engine.from_pretrained("countdown") as engine:
        out = Path(folder) / "results.jsonl"
        asyncio.run(work(engine, out, most=3))
        asyncio.run(work(engine, out, most=len(TASKS)))
        contents = Contents.read(out)
        print(f"{contents.lines} problems have one result each, {contents.solved} of them solved")
        return contents


if __name__ == "__main__":
    main()

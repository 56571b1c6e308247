"""`dendrite bench`: runs the benchmarks of a checkout. They are no part of the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dendrite.errors import InvalidArgument, MissingDependency

BENCHMARKS = (
    "tree_workloads",
    "attention",
    "decode",
    "fork",
    "search",
    "parallel_search",
    "grammar",
    "kernels",
    "quant",
)


def run_benchmark(name: str, arguments: Sequence[str]) -> int:
    """Run `python -m benchmarks.NAME` with these arguments, here, and return its exit code.

    Raises:
        InvalidArgument: there is no benchmark of that name.
        MissingDependency: this is no checkout, so the benchmarks are not there.
    """
    if name not in BENCHMARKS:
        raise InvalidArgument("name", name, f"must be one of {', '.join(BENCHMARKS)}")
    root = _checkout(name)
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}", *arguments], env=environment) as process:
        return process.wait()


def _checkout(name: str) -> Path:
    """The folder that holds `benchmarks`: where this package lies, or else where the caller is."""
    for root in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (root / "benchmarks" / f"{name}.py").is_file():
            return root
    raise MissingDependency(
        f"benchmarks.{name}",
        "the benchmarks are in the repository, not in the installed package",
        "run this in a checkout, after pip install -e .",
    )

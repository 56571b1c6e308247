"""What each worker is given of a cluster's processors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dendrite.errors import ClusterError

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """Resources of one model worker. `cpus` is what Ray reserves, a fraction where workers outnumber processors."""

    device: Device
    cpus: float
    gpus: int
    threads: int

    def options(self) -> dict[str, Any]:
        """The share as options of a Ray actor."""
        # Threads that spin at every barrier slow one another down several times where workers share cores.
        environment = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "passive"}
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": environment},
        }


def with_environment(options: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Options of a Ray actor, with more variables in its environment."""
    if not variables:
        return dict(options)
    given = options.get("runtime_env", {})
    return {**options, "runtime_env": {**given, "env_vars": {**given.get("env_vars", {}), **variables}}}


def share(
    workers: int,
    device: Literal["cpu", "cuda", "auto"],
    free: Mapping[str, float],
    largest_machine: float,
    cpus_per_worker: int | None = None,
) -> WorkerShare:
    """Divide what is free of a cluster among workers: a GPU each where there are enough, equal parts of the CPUs.

    Args:
        workers: how many there will be.
        device: what they run on; "auto" is CUDA if every worker can have a GPU.
        free: resources that nobody has reserved, such as `{"CPU": 8.0, "GPU": 1.0}`.
        largest_machine: CPUs of the largest machine, for a worker runs on one.
        cpus_per_worker: replaces the equal part.

    Raises:
        ClusterError: there are not enough GPUs or CPUs, or no machine has as many as a worker needs.
    """
    gpus, cpus = int(free.get("GPU", 0.0)), free.get("CPU", 0.0)
    if device == "auto":
        device = "cuda" if gpus >= workers else "cpu"
    if device == "cuda" and gpus < workers:
        raise ClusterError(f"{workers} workers need a GPU each, and the Ray cluster has {gpus} free")
    if cpus <= 0 or cpus < (cpus_per_worker or 0) * workers:
        wanted = "CPUs" if cpus_per_worker is None else f"{cpus_per_worker} CPUs each"
        raise ClusterError(f"{workers} workers need {wanted}, and the Ray cluster has {cpus:g} free")
    if (cpus_per_worker or 0) > largest_machine:
        raise ClusterError(f"workers need {cpus_per_worker} CPUs each, and the largest machine has {largest_machine:g}")
    each = float(cpus_per_worker or min(cpus / workers, largest_machine))
    whole = float(int(each)) if each >= 1 else each
    return WorkerShare(device, whole, 1 if device == "cuda" else 0, max(1, int(each)))

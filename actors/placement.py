"""What each worker is given of a cluster's processors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.threads)}},
        }


def share(workers: int, device: Literal["cpu", "cuda", "auto"], nodes: Iterable[Mapping[str, float]]) -> WorkerShare:
    """Divide a cluster among its workers: a GPU each where there are enough, equal parts of the processors.

    Args:
        workers: how many there will be.
        device: what they run on; "auto" is CUDA if every worker can have a GPU.
        nodes: Ray's resources of each machine, such as `{"CPU": 8.0, "GPU": 1.0}`.

    Raises:
        ClusterError: there are not enough GPUs, or no processors at all.
    """
    machines = list(nodes)
    gpus = int(sum(machine.get("GPU", 0.0) for machine in machines))
    cpus = sum(machine.get("CPU", 0.0) for machine in machines)
    if cpus <= 0:
        raise ClusterError("the Ray cluster has no CPUs to run workers on")
    if device == "auto":
        device = "cuda" if gpus >= workers else "cpu"
    if device == "cuda" and gpus < workers:
        raise ClusterError(f"{workers} workers need a GPU each, and the Ray cluster has {gpus}")
    largest = max(machine.get("CPU", 0.0) for machine in machines)
    each = min(cpus / workers, largest)
    whole = float(int(each)) if each >= 1 else each
    return WorkerShare(device, whole, 1 if device == "cuda" else 0, max(1, int(each)))

from __future__ import annotations

import pytest

from actors.placement import WorkerShare, share, with_environment
from dendrite.errors import ClusterError


def test_workers_share_the_free_processors() -> None:
    assert share(2, "auto", {"CPU": 8.0}, 8.0) == WorkerShare("cpu", cpus=4.0, gpus=0, threads=4)
    assert share(3, "auto", {"CPU": 8.0}, 8.0) == WorkerShare("cpu", cpus=2.0, gpus=0, threads=2)


def test_more_workers_than_processors_still_fit() -> None:
    assert share(8, "cpu", {"CPU": 2.0}, 2.0) == WorkerShare("cpu", cpus=0.25, gpus=0, threads=1)


def test_a_worker_does_not_outgrow_a_machine() -> None:
    assert share(1, "cpu", {"CPU": 20.0}, 16.0).threads == 16


def test_a_given_number_of_processors_is_kept_to() -> None:
    assert share(2, "cpu", {"CPU": 8.0}, 8.0, cpus_per_worker=1) == WorkerShare("cpu", cpus=1.0, gpus=0, threads=1)


def test_gpus_are_taken_where_every_worker_can_have_one() -> None:
    free = {"CPU": 16.0, "GPU": 2.0}
    assert share(2, "auto", free, 8.0) == WorkerShare("cuda", cpus=8.0, gpus=1, threads=8)
    assert share(3, "auto", free, 8.0).device == "cpu"
    assert share(2, "cpu", free, 8.0).gpus == 0


def test_an_actor_s_environment_is_added_to() -> None:
    options = WorkerShare("cpu", cpus=1.0, gpus=0, threads=1).options()
    assert with_environment(options, {}) == options
    variables = with_environment(options, {"DENDRITE_LOG_FORMAT": "json"})["runtime_env"]["env_vars"]
    assert variables == {**options["runtime_env"]["env_vars"], "DENDRITE_LOG_FORMAT": "json"}
    assert with_environment({"num_cpus": 0}, {"A": "b"}) == {"num_cpus": 0, "runtime_env": {"env_vars": {"A": "b"}}}


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ClusterError, match="2 workers need a GPU each, and the Ray cluster has 1 free"):
        share(2, "cuda", {"CPU": 8.0, "GPU": 1.0}, 8.0)
    with pytest.raises(ClusterError, match="2 workers need CPUs, and the Ray cluster has 0 free"):
        share(2, "auto", {}, 8.0)
    with pytest.raises(ClusterError, match="2 workers need 3 CPUs each, and the Ray cluster has 4 free"):
        share(2, "cpu", {"CPU": 4.0}, 8.0, cpus_per_worker=3)
    with pytest.raises(ClusterError, match="workers need 6 CPUs each, and the largest machine has 4"):
        share(1, "cpu", {"CPU": 8.0}, 4.0, cpus_per_worker=6)

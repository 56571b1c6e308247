from __future__ import annotations

import pytest

from actors.placement import WorkerShare, share
from dendrite.errors import ClusterError


def test_workers_share_the_processors_of_one_machine() -> None:
    assert share(2, "auto", [{"CPU": 8.0}]) == WorkerShare("cpu", cpus=4.0, gpus=0, threads=4)
    assert share(3, "auto", [{"CPU": 8.0}]) == WorkerShare("cpu", cpus=2.0, gpus=0, threads=2)


def test_more_workers_than_processors_still_fit() -> None:
    assert share(8, "cpu", [{"CPU": 2.0}]) == WorkerShare("cpu", cpus=0.25, gpus=0, threads=1)


def test_a_worker_does_not_outgrow_a_machine() -> None:
    assert share(1, "cpu", [{"CPU": 4.0}, {"CPU": 16.0}]).threads == 16


def test_gpus_are_taken_where_every_worker_can_have_one() -> None:
    machines = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert share(2, "auto", machines) == WorkerShare("cuda", cpus=8.0, gpus=1, threads=8)
    assert share(3, "auto", machines).device == "cpu"
    assert share(2, "cpu", machines).gpus == 0


def test_missing_hardware_is_named() -> None:
    with pytest.raises(ClusterError, match="2 workers need a GPU each, and the Ray cluster has 1"):
        share(2, "cuda", [{"CPU": 8.0, "GPU": 1.0}])
    with pytest.raises(ClusterError, match="no CPUs"):
        share(2, "auto", [{}])

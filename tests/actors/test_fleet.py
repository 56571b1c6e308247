"""Members of a fleet come and go."""

from __future__ import annotations

import threading

from actors.fleet import Fleet


def test_a_worker_joins_once_and_in_its_turn() -> None:
    fleet = Fleet(["a"])
    fleet.join(2, "c")
    assert len(fleet) == 1
    fleet.join(1, "b")
    fleet.join(1, "other")
    assert (len(fleet), fleet.handle(1), fleet.up) == (2, "b", [0, 1])


def test_a_retired_worker_keeps_its_number_and_has_lost_what_it_held() -> None:
    fleet = Fleet(["a", "b", "c"])
    epoch = fleet.epoch(1)
    fleet.retire(1)
    assert (fleet.members, fleet.up) == ([0, 2], [0, 2])
    assert fleet.epoch(1) > epoch
    assert fleet.handle(2) == "c"


def test_threads_that_tell_of_the_same_worker_add_it_once() -> None:
    fleet = Fleet(["a"])
    barrier = threading.Barrier(8)

    def join() -> None:
        barrier.wait()
        for worker in range(1, 200):
            fleet.join(worker, str(worker))

    threads = [threading.Thread(target=join) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fleet.handle(worker) for worker in range(1, 200)] == [str(worker) for worker in range(1, 200)]
    assert len(fleet) == 200

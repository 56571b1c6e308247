from __future__ import annotations

import threading

import pytest

from actors.lease_keeper import LeaseKeeper


class Manager:
    """Of the tree manager's handle, what a keeper uses; the first calls fail."""

    def __init__(self, failures: int = 0) -> None:
        self.renew = self
        self.failures = failures
        self.renewed: list[list[int]] = []
        self.some = threading.Event()

    def remote(self, leases: list[int]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no way to the manager now")
        self.renewed.append(leases)
        self.some.set()


def test_leases_are_renewed_until_they_are_given_up() -> None:
    manager = Manager()
    keeper = LeaseKeeper(manager, 0.02)
    keeper.add(2)
    keeper.add(1)
    assert manager.some.wait(30)
    keeper.discard(2)
    keeper.close()
    assert manager.renewed[-1] in ([2], [1, 2])
    assert not keeper._thread.is_alive()


def test_a_renewal_that_fails_loses_no_lease(caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager(failures=2)
    keeper = LeaseKeeper(manager, 0.02)
    keeper.add(1)
    assert manager.some.wait(30)
    keeper.close()
    assert manager.renewed[0] == [1]
    assert caplog.messages == ["event=renewal_failed leases=1: no way to the manager now"] * 2

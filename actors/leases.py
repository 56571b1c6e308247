"""Leases with a time to live: whoever stops renewing gives up all that was held under the lease."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dendrite.errors import ClusterError

IDS_PER_EPOCH = 2**20
"""Lease ids from one incarnation's first to the next one's. One that needs more goes on into the next one's range,
which then begins after all that it hears of."""
MAX_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to hold trees until `ttl_s` seconds after the last renewal. `id` is never used twice."""

    id: int
    ttl_s: float


class LeaseBook:
    """Open leases and when each ends. Times are seconds of any one monotonic clock, given by the caller.

    A book of a later epoch has lost what the one before it knew. So for one time to live it takes in every lease that
    it hears of, and hears of all whose holders are alive; but not those that it was told are over.
    """

    def __init__(self, ttl_s: float, epoch: int = 0, now: float = 0.0) -> None:
        self.ttl_s = ttl_s
        self._ends: dict[int, float] = {}
        self._over: set[int] = set()  # while there is grace
        self._next_id = epoch * IDS_PER_EPOCH + 1
        self._grace_ends = now + ttl_s if epoch else now

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, lease: int) -> bool:
        return lease in self._ends

    def open(self, now: float) -> Lease:
        """Grant a new lease that ends `ttl_s` from now.

        Raises:
            ClusterError: all ids have been used.
        """
        if self._next_id > MAX_ID:
            raise ClusterError(f"all {MAX_ID} lease ids have been used")
        lease = Lease(self._next_id, self.ttl_s)
        self._next_id += 1
        self._ends[lease.id] = now + self.ttl_s
        return lease

    def in_grace(self, now: float) -> bool:
        """Whether leases are still taken in."""
        if now < self._grace_ends:
            return True
        self._over.clear()
        return False

    def hear_of(self, lease: int, now: float) -> bool:
        """Whether a lease is open; while there is grace, one that is not known to be over becomes so."""
        self._next_id = max(self._next_id, lease + 1) if self.in_grace(now) else self._next_id
        if lease not in self._ends and self.in_grace(now) and lease not in self._over:
            self._ends[lease] = now + self.ttl_s
        return lease in self._ends

    def renew(self, leases: Iterable[int], now: float) -> list[int]:
        """Extend leases to `ttl_s` from now. Returns those that are no longer open."""
        gone = []
        for lease in leases:
            if self.hear_of(lease, now):
                self._ends[lease] = now + self.ttl_s
            else:
                gone.append(lease)
        return gone

    def close(self, lease: int, now: float) -> bool:
        """End a lease now. False if it was not open, nor could have been."""
        was_open = self._ends.pop(lease, None) is not None
        if self.in_grace(now) and lease not in self._over:
            self._over.add(lease)
            return True
        return was_open

    def take_expired(self, now: float) -> list[int]:
        """Remove and return the leases that ended at or before `now`."""
        expired = [lease for lease, end in self._ends.items() if end <= now]
        for lease in expired:
            del self._ends[lease]
        return expired

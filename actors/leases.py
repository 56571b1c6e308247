"""Leases with a time to live: whoever stops renewing gives up all that was held under the lease."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to hold trees until `ttl_s` seconds after the last renewal. `id` is never used twice."""

    id: int
    ttl_s: float


class LeaseBook:
    """Open leases and when each ends. Times are seconds of any one monotonic clock, given by the caller."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self._ends: dict[int, float] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, lease: int) -> bool:
        return lease in self._ends

    def open(self, now: float) -> Lease:
        """Grant a new lease that ends `ttl_s` from now."""
        lease = Lease(self._next_id, self.ttl_s)
        self._next_id += 1
        self._ends[lease.id] = now + self.ttl_s
        return lease

    def renew(self, leases: Iterable[int], now: float) -> list[int]:
        """Extend leases to `ttl_s` from now. Returns those that are no longer open."""
        gone = []
        for lease in leases:
            if lease in self._ends:
                self._ends[lease] = now + self.ttl_s
            else:
                gone.append(lease)
        return gone

    def close(self, lease: int) -> bool:
        """End a lease now. False if it was not open."""
        return self._ends.pop(lease, None) is not None

    def take_expired(self, now: float) -> list[int]:
        """Remove and return the leases that ended at or before `now`."""
        expired = [lease for lease, end in self._ends.items() if end <= now]
        for lease in expired:
            del self._ends[lease]
        return expired

"""Keeps leases alive for as long as their holder's process is."""

from __future__ import annotations

import logging
import threading

import ray
from ray.exceptions import RayError

from actors.leases import Lease
from actors.rpc import Handle, translate
from dendrite.logs import log_event

_log = logging.getLogger("dendrite.cluster")

_OPENS_WITHIN_S = 60.0


def open_lease(manager: Handle) -> Lease:
    """Open a lease, from code without an event loop.

    Raises:
        ClusterError: the tree manager is dead, or does not answer.
    """
    try:
        lease: Lease = ray.get(manager.open_lease.remote(), timeout=_OPENS_WITHIN_S)
    except RayError as error:
        raise translate(error, "the tree manager") from error
    return lease


class LeaseKeeper:
    """Renews leases from a thread of its own, so that a busy or absent event loop loses none."""

    def __init__(self, manager: Handle, ttl_s: float) -> None:
        self._manager, self._interval = manager, ttl_s / 4
        self._leases: frozenset[int] = frozenset()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="dendrite-leases", daemon=True)
        self._thread.start()

    def add(self, lease: int) -> None:
        """Begin to renew a lease."""
        self._leases |= {lease}

    def discard(self, lease: int) -> None:
        """Stop renewing a lease."""
        self._leases -= {lease}

    def close(self) -> None:
        """Stop renewing. Leases that are still open run out."""
        self._stop.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._stop.wait(self._interval):
            leases = sorted(self._leases)
            try:
                if leases:
                    self._manager.renew.remote(leases)
            except Exception as error:  # without this thread all leases would run out
                log_event(_log, logging.WARNING, {"event": "renewal_failed", "leases": len(leases)}, error)

"""Backend nodes that are held for a time, whatever becomes of the trees that made them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from dendrite.search.backend import NodeRef


@dataclass(frozen=True, slots=True)
class PinRecord:
    """A pin, and whose it is. The KV of all before the node stays with it."""

    id: str
    owner: str
    ref: NodeRef
    until: float
    kv_bytes: int


class Pins:
    """Keeps pinned nodes from being released by their trees, until the last pin on them runs out."""

    def __init__(self) -> None:
        self._pins: dict[str, PinRecord] = {}
        self._orphans: set[NodeRef] = set()

    def add(self, owner: str, ref: NodeRef, until: float, kv_bytes: int) -> PinRecord:
        """Pin a node."""
        pin = PinRecord(f"pin_{secrets.token_hex(12)}", owner, ref, until, kv_bytes)
        self._pins[pin.id] = pin
        return pin

    def give_up(self, refs: Iterable[NodeRef]) -> list[NodeRef]:
        """Which of the nodes that a tree gives up are to be released now; the pinned ones are later."""
        pinned = {pin.ref for pin in self._pins.values()}
        free = []
        for ref in refs:
            if ref in pinned:
                self._orphans.add(ref)
            else:
                free.append(ref)
        return free

    def expire(self, now: float) -> tuple[list[PinRecord], list[NodeRef]]:
        """End the pins that have run out: they, and the nodes that are to be released with them."""
        over = [pin for pin in self._pins.values() if pin.until <= now]
        for pin in over:
            del self._pins[pin.id]
        pinned = {pin.ref for pin in self._pins.values()}
        free = [ref for ref in {pin.ref for pin in over} if ref in self._orphans and ref not in pinned]
        self._orphans.difference_update(free)
        return over, free

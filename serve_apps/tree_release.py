"""Nodes of trees being given up: what generates there ends, their KV is released, their owner's account is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serve_apps.decoding import Releases
from serve_apps.pins import Pins
from serve_apps.tree_records import Record, TreeRecord


async def give_up(tree: TreeRecord, records: Sequence[Record], releases: Releases, pins: Pins) -> None:
    """Give up nodes of a tree, parents before their children. From the first moment on nothing is made below them.

    A node stays in the topology, and its KV is held, as long as something lives below it. Any number of these may be
    under way for the same nodes, but each must reach its end.
    """
    for record in records:
        record.released = True
    jobs = [record.job for record in records if record.job is not None]
    for job in jobs:
        job.cancel()
    if jobs:
        await asyncio.wait(jobs)
    for record in reversed(records):
        _prune(tree, record, releases, pins)


def _prune(tree: TreeRecord, record: Record, releases: Releases, pins: Pins) -> None:
    """Take a node that has been given up out of its tree, if nothing is below it, and so up the path."""
    place: Record | None = record
    while place is not None and place.released and not (place.gone or place.children or place.job is not None):
        del tree.nodes[place.id]
        place.gone = True
        releases.release(*pins.give_up(place.refs))
        place.account.free(place.kv_bytes)
        if place.parent is not None:
            place.parent.children.remove(place.id)
        place = place.parent

"""How much of the KV is read by more than one node."""

from __future__ import annotations

from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node, NodeState


def shared_pages(cache: KvCache) -> int:
    """Pages of segments with two or more live nodes at or below them.

    One walk over all segments, for whoever watches a cache now and then. A segment counts as a whole, though nodes that
    fork off inside it read it up to there only.
    """
    segments = list(cache.segments.roots)
    for segment in segments:  # grows while it is walked: parents come before their children
        segments.extend(segment._children or ())
    readers: dict[Node, int] = {}
    pages = 0
    for segment in reversed(segments):
        found = readers.pop(segment, 0) + (segment._state is NodeState.LIVE)
        if found > 1:
            pages += len(segment.pages)
        if found and segment.parent is not None:
            readers[segment.parent] = readers.get(segment.parent, 0) + found
    return pages

"""Which subtrees of a search are not worth their memory."""

from __future__ import annotations

from collections.abc import Iterable

from dendrite.search.tree import SearchNode


def hopeless(node: SearchNode, limit: float, visits: int) -> SearchNode | None:
    """The largest hopeless subtree that holds `node`: its mean is under `limit` after at least so many `visits`.

    The root is never one; nor is what is closed. None if there is no such subtree.
    """
    found = None
    for place in node.lineage:
        stats = place.stats
        if place.parent is not None and not place.closed and stats.visits >= visits and stats.mean < limit:
            found = place
    return found


def least_valuable(roots: Iterable[SearchNode]) -> SearchNode | None:
    """The open tip of the lowest mean, and among equals of the fewest visits, then the last in the tree.

    A tip has no open children and nothing in flight; a root is none. None if there is no such node.
    """
    tips = [node for root in roots for node in root.places if _is_tip(node)]
    return min(reversed(tips), key=lambda tip: (tip.stats.mean, tip.stats.visits), default=None)


def _is_tip(node: SearchNode) -> bool:
    if node.closed or node.parent is None or node.stats.in_flight:
        return False
    return all(child.closed for child in node.children)

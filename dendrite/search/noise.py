"""Noise of a search's own choices: it depends on the seed and the place in the tree, never on timing."""

from __future__ import annotations

from collections.abc import Iterable

from dendrite.search.seeds import derive_seed


def uniform(seed: int, path: Iterable[int], draw: int) -> float:
    """A uniform variate in (0, 1), both ends excluded.

    Args:
        seed: Of the search.
        path: The child indices from the root to the node that it is for.
        draw: Numbers the variates of a node, from 0. They share no bits with the node's sampling seeds.
    """
    return ((derive_seed(seed, path, -1 - draw) >> 11) + 0.5) / 2.0**52

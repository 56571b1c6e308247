"""Seeds of expansions: they depend on where in the tree and how often, never on timing or node ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def derive_seed(seed: int, path: Iterable[int], draw: int) -> int:
    """Hash a search seed, the child indices from the root to a node, and the expansions there so far.

    Returns:
        A seed in 0 .. 2^63 - 1, the same in every process and release.
    """
    text = f"{seed}:{'.'.join(map(str, path))}:{draw}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

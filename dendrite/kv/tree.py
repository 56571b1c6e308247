"""What the nodes of one tree have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dendrite.kv.cache import KvCache


@dataclass(slots=True, eq=False, repr=False)
class Tree:
    """A tree of nodes.

    `seed` and a node's id key its sampling noise, so ids are handed out in the order of the forks and never reused.
    """

    id: int
    seed: int
    cache: KvCache
    detokenize: Callable[[Sequence[int]], str]
    next_id: int = 0

    def __repr__(self) -> str:
        return f"Tree(id={self.id}, seed={self.seed}, nodes made={self.next_id})"

"""How many pages a request needs at once: those that it reads, and those that it will soon write."""

from __future__ import annotations

from dendrite.engine.generation import Generation
from dendrite.engine.paths import ancestors
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node

AHEAD_TOKENS = 32
"""How far admission looks ahead: generations that run out of pages sooner would be preempted, and computed again."""


class Footprint:
    """Pages of several requests together; what they share counts once."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._counted: set[Node] = set()
        self.pages = 0

    def add(self, node: Node) -> None:
        """Count the pages of a path whose every token has its KV. O(nodes that were not counted yet)."""
        pending = self._cache.pending_ancestors(node)
        self._count(node, len(node.tokens) - node.computed)
        for ancestor in ancestors(node):
            if ancestor in self._counted:
                return
            self._count(ancestor, len(ancestor.tokens) - ancestor.computed if ancestor in pending else 0)

    def add_generation(self, generation: Generation) -> None:
        """Count a generation's path, and the pages of its next tokens."""
        node = generation.node
        self.add(node)
        lacking = len(node.tokens) - node.computed
        ahead = min(generation.params.max_tokens - generation.produced, AHEAD_TOKENS)
        self.pages += self._cache.pages_needed(node, lacking + ahead) - self._cache.pages_needed(node, lacking)

    def _count(self, node: Node, lacking: int) -> None:
        if node not in self._counted:
            self._counted.add(node)
            self.pages += len(node.pages) + self._cache.pages_needed(node, lacking)

"""How many pages requests need at once: those that they read, and those that they will soon write."""

from __future__ import annotations

from collections.abc import Iterable

from dendrite.engine.generation import Generation
from dendrite.engine.paths import ancestors
from dendrite.kv.ancestry import pending_ancestors
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node

AHEAD_TOKENS = 32
"""How far admission looks ahead: generations that run out of pages sooner would be preempted, and computed again."""


class Footprint:
    """Pages of several requests together, in `pages`; what they share counts once."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._whole: set[Node] = set()  # with a node, all above it are in
        self._kept: set[Node] = set()
        self.pages = 0

    def keep(self, nodes: Iterable[Node]) -> None:
        """Count the pages that paths have now."""
        for node in nodes:
            at: Node | None = node
            while at is not None and at not in self._kept and at not in self._whole:
                self._kept.add(at)
                self.pages += len(at.pages)
                at = at.parent

    def add(self, node: Node) -> None:
        """Count the pages that a path has once every token of it has its KV."""
        pending = pending_ancestors(node)
        self._add(node, len(node.tokens) - node.computed)
        for ancestor in ancestors(node):
            if ancestor in self._whole:
                return
            self._add(ancestor, len(ancestor.tokens) - ancestor.computed if ancestor in pending else 0)

    def add_generation(self, generation: Generation) -> None:
        """Count a generation's path, and the pages of its next tokens."""
        node = generation.node
        self.add(node)
        lacking = len(node.tokens) - node.computed
        ahead = min(generation.params.max_tokens - generation.produced, AHEAD_TOKENS)
        self.pages += self._needed(node, lacking + ahead) - self._needed(node, lacking)

    def _add(self, node: Node, lacking: int) -> None:
        if node not in self._whole:
            self._whole.add(node)
            self.pages += self._needed(node, lacking) + (0 if node in self._kept else len(node.pages))

    def _needed(self, node: Node, tokens: int) -> int:
        return self._cache.pages_needed(node, tokens) if tokens else 0  # a tail page is copied with the first write

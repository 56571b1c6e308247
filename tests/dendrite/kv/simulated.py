"""A KV memory that is a list, so that a test can read back what each node would attend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dendrite.errors import InvalidArgument
from dendrite.kv import KvCache, Node, TailCopy
from dendrite.kv.ancestry import pending_ancestors


def fingerprints(tokens: Sequence[int]) -> list[int]:
    """What the slot of each token holds: like KV, it depends on the token and on all before it."""
    made: list[int] = []
    for token in tokens:
        made.append(hash((made[-1] if made else 0, token)))
    return made


def books(cache: KvCache, *nodes: Node) -> dict[str, Any]:
    """What a failed operation must leave as it was."""
    return {
        "free": cache.pool.num_free,
        "cached": cache.cached_pages,
        "counters": (cache.forks, cache.cow_copies, cache.takeovers, cache.evicted_pages),
        "nodes": [(node._state, node.computed, list(node.pages), list(node.tokens)) for node in nodes],
    }


class SimulatedEngine:
    """Drives a KvCache as the engine does: reserve for all, copy tails, write, append, commit."""

    def __init__(self, num_pages: int = 64, page_size: int = 16, *, prefix_cache: bool = True) -> None:
        self.freed: list[Node] = []
        self.cache = KvCache(num_pages, page_size, prefix_cache, on_free=self.freed.append)
        self.page_size = page_size
        self.slots = [0] * (num_pages * page_size)
        self.trees = 0

    def prompt(self, tokens: Sequence[int], *, compute: bool = True) -> Node:
        """A root whose prompt is computed and sealed."""
        self.trees += 1
        root = self.cache.new_tree(list(tokens), tree_id=self.trees, seed=0, detokenize=repr)
        if compute:
            self.compute(root)
            self.cache.seal(root)
        return root

    def compute(self, node: Node, n: int | None = None) -> None:
        """Write the KV of the node's next `n` given tokens, or of all that are left."""
        left = len(node.tokens) - node.computed
        self.step([(node, node.tokens[node.computed :][: left if n is None else n])], given=True)

    def decode(self, node: Node, tokens: Sequence[int]) -> None:
        """Generate `tokens`, one step each."""
        for token in tokens:
            self.step([(node, [token])])

    def step(self, work: Sequence[tuple[Node, Sequence[int]]], *, given: bool = False) -> list[TailCopy]:
        """One batch. With `given`, the tokens are the node's own already; else they are appended."""
        copies = [copy for node, tokens in work if (copy := self.cache.reserve(node, len(tokens))) is not None]
        self._copy(copies)
        for node, tokens in work:
            path = self.path(node)[: node.base + node.computed]
            start = len(path)
            path += tokens
            table = self.cache.page_table(node)
            for at, mark in enumerate(fingerprints(path)[start:], start):
                self.slots[int(table[at // self.page_size]) * self.page_size + at % self.page_size] = mark
            if not given:
                node.tokens.extend(tokens)
            self.cache.commit(node, len(tokens))
        return copies

    def path(self, node: Node) -> list[int]:
        """The node's path, from its ancestors' lists one by one."""
        above = self.path_above(node)
        return above + node.tokens

    @staticmethod
    def path_above(node: Node) -> list[int]:
        return node.path_tokens[: node.base]

    def readable(self, node: Node) -> list[int]:
        """What the node reads at each computed position of its path."""
        table = self.cache.page_table(node).tolist()
        size = self.page_size
        positions = range(node.base + node.computed)
        return [self.slots[table[at // size] * size + at % size] for at in positions]

    def verify(self, nodes: Sequence[Node]) -> None:
        """The books are in order, and each node that can run reads exactly its own path."""
        self.cache.check()
        for node in nodes:
            if not node.released and not pending_ancestors(node):
                assert self.readable(node) == fingerprints(node.path_tokens[: node.base + node.computed]), node

    def droppable(self, node: Node) -> bool:
        try:
            self.cache.drop(node)
        except InvalidArgument:
            return False
        return True

    def _copy(self, copies: Sequence[TailCopy]) -> None:
        """All sources are read before any destination is written, as storage does it."""
        size = self.page_size
        held = [self.slots[copy.src_page * size : copy.src_page * size + copy.filled] for copy in copies]
        for copy, values in zip(copies, held, strict=True):
            assert 0 < copy.filled < size
            self.slots[copy.dst_page * size : copy.dst_page * size + copy.filled] = values

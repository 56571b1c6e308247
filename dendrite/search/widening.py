"""How many children a node may have: progressive widening, and when there is no more to draw."""

from __future__ import annotations

from dendrite.search.mcts_options import MctsOptions
from dendrite.search.stats import child_limit
from dendrite.search.tree import SearchNode


class Widening:
    """Says how many children may be drawn where."""

    def __init__(self, options: MctsOptions) -> None:
        self._options = options

    def draws(self, node: SearchNode) -> int:
        """How many children may be drawn at `node` now, 0 if it must be passed through."""
        return self.room(node, child_limit(node.stats.visits, self._options.widening_k, self._options.widening_alpha))

    def room(self, node: SearchNode, limit: int) -> int:
        """The same where a node may have up to `limit` children, and one more while all it has are closed."""
        if node.closed or self.drained(node):
            return 0
        room = limit - len(node.children) - node.pending
        if room <= 0 and node.children and all(child.closed for child in node.children):
            room = 1
        return max(0, min(self._options.children, room))

    def drained(self, node: SearchNode) -> bool:
        """Whether `node` is not worth another draw."""
        options = self._options
        return node.overflowed or node.misses >= options.patience or node.unseen < options.min_unseen

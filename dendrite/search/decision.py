"""When a search moves its root to a child, which one, and when it stops early."""

from __future__ import annotations

from typing import Literal

from dendrite.search.convergence import converged, most_visited
from dendrite.search.gumbel import SequentialHalving
from dendrite.search.mcts_options import MctsOptions
from dendrite.search.tree import SearchNode
from dendrite.search.widening import Widening


class Decision:
    """The decision at the present root; after each move begins the next one.

    With `commit` the root moves to its most visited child after so many expansions; a Gumbel root to the winner of its
    sequential halving. Without either it stays.
    """

    def __init__(self, options: MctsOptions, widening: Widening, seed: int) -> None:
        self._options = options
        self._widening = widening
        self._seed = seed
        self.halving: SequentialHalving | None = None
        """The comparison under way at a Gumbel root, once its children are drawn."""
        self._landed = 0
        self._reward = 0.0

    def landed(self, reward: float) -> None:
        """Count an expansion that has returned, with the highest reward that it has brought."""
        self._landed += 1
        self._reward = max(self._reward, reward)

    def moved(self) -> None:
        """Begin anew, at another root."""
        self._landed = 0
        self.halving = None

    def child(self, root: SearchNode) -> SearchNode | None:
        """The child that the root is to move to now; None: it stays where it is."""
        if self._options.root == "gumbel":
            return self._winner(root)
        commit = self._options.commit
        if commit is None:
            return None
        left = max(0, commit - self._landed)
        early = self._options.early_stop and converged([root], left * self._options.children)
        return most_visited(root) if early or not left else None

    def _winner(self, root: SearchNode) -> SearchNode | None:
        options = self._options
        if self.halving is None:
            undrawn = root.pending or self._widening.room(root, options.considered)
            if undrawn or all(child.closed for child in root.children):
                return None
            simulations = options.simulations or 1
            self.halving = SequentialHalving(root, simulations, self._seed, options.c_visit, options.c_scale)
        self.halving.advance()
        if not self.halving.decided:
            return None
        winner = self.halving.winner
        if winner is None:
            self.halving = None
        return winner

    def stopped(self, trees: list[SearchNode], expansions_left: int | None) -> Literal["converged", "decided"] | None:
        """Why the search is to stop early, if it is.

        Args:
            trees: The roots.
            expansions_left: That the budget has room for; None: it has no such limit.
        """
        options = self._options
        if not options.early_stop:
            return None
        if self._reward >= options.max_reward or all(root.closed for root in trees):
            return "decided"
        stays = options.commit is None and options.root == "same"
        if stays and expansions_left is not None and converged(trees, expansions_left * options.children):
            return "converged"
        return None

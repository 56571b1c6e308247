"""Which child a descent takes: the scores of a node's children, highest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dendrite.search.gumbel import improved_policy
from dendrite.search.mcts_options import MctsOptions
from dendrite.search.noise import uniform
from dendrite.search.stats import VisitStats, expected, puct, seen, uct
from dendrite.search.tree import SearchNode


class Selector:
    """Ranks the children of a node by the `selection` of the options, with visits in flight as `parallel` says."""

    def __init__(self, options: MctsOptions, seed: int) -> None:
        self._options = options
        self._seed = seed

    def ranked(self, node: SearchNode) -> Iterator[SearchNode]:
        """The open children from the highest score to the lowest; the first drawn among equals."""
        scores = self.scores(node)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        ranked = [node.children[index] for index in order if not node.children[index].closed]
        if self._options.selection == "epsilon_greedy" and ranked:
            ranked.insert(0, ranked.pop(self._explored(node, len(ranked))))
        return iter(ranked)

    def scores(self, node: SearchNode) -> list[tuple[float, ...]]:
        """A score for each child; of equal ones the second part decides."""
        options = self._options
        parent, children = self._seen(node), [self._seen(child) for child in node.children]
        match options.selection:
            case "uct":
                return [(uct(child, parent, options.exploration),) for child in children]
            case "puct":
                pairs = zip(children, node.priors(), strict=True)
                return [(puct(child, parent, prior, options.exploration),) for child, prior in pairs]
            case "improved_policy":
                return [(share,) for share in self._lacking(node, parent, children)]
            case "greedy" | "epsilon_greedy":
                return [(expected(child, parent), -child.reach) for child in children]

    def _seen(self, node: SearchNode) -> VisitStats:
        return seen(node.stats, self._options.parallel, self._options.virtual_loss)

    def _lacking(self, node: SearchNode, parent: VisitStats, children: list[VisitStats]) -> list[float]:
        """Share of visits that a child lacks under the improved policy: pi'(a) - N(a) / (1 + sum N(b)).

        Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022, the choice at nodes that are not
        the root.
        """
        own = node.thought.value if node.thought.value is not None else parent.mean
        policy = improved_policy(node.priors(), children, own, self._options.c_visit, self._options.c_scale)
        total = 1 + sum(child.reach for child in children)
        return [share - child.reach / total for share, child in zip(policy, children, strict=True)]

    def _explored(self, node: SearchNode, n: int) -> int:
        """Rank of the child to try first: 0, or with probability epsilon any one below `n`."""
        epsilon = self._options.epsilon
        noise = uniform(self._seed, node.path, 1 + node.stats.reach)
        return min(int(noise / epsilon * n), n - 1) if noise < epsilon else 0


def descend(
    root: SearchNode,
    ranked: Callable[[SearchNode], Iterator[SearchNode]],
    draws: Callable[[SearchNode], int],
) -> SearchNode | None:
    """Descend to the node to expand next: at each step the first child, as ranked, that leads to one.

    Args:
        root: Where to begin.
        ranked: The open children of a node, the best first.
        draws: How many children may be drawn at a node now; 0: it is passed through.

    Returns:
        None if there is no such node now: all is closed, or waits for what is in flight.
    """
    ways = [iter((root,))] if not root.closed else []
    while ways:
        node = next(ways[-1], None)
        if node is None:
            ways.pop()
        elif draws(node):
            return node
        else:
            ways.append(ranked(node))
    return None

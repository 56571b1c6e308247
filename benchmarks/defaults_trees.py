"""Trees of segments of uneven length, as searches grow them, and the room that their pages leave unused.

The workloads' segments all have 32 tokens behind prompts of whole pages: they would show no waste at any page size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dendrite import Engine, Node
from dendrite.engine.generation import raise_first
from dendrite.profiling.workloads import Prompts, Sizes

_AT_ONCE = 16


def grow_search(engine: Engine, prompts: Prompts, sizes: Sizes) -> list[Node]:
    """A tree like W3's: every node that it has."""
    draws = random.Random(0)
    nodes = [engine.prefill(prompts(_uneven(draws, sizes.w3_prompt)))]
    while len(nodes) <= sizes.w3_expansions:
        kids = [nodes[int(len(nodes) * draws.random() ** 0.5)].fork()[0] for _ in range(_AT_ONCE)]
        _decode_unevenly(engine, kids, draws, sizes.w3_tokens)
        nodes += kids
    return nodes


def grow_beams(engine: Engine, prompts: Prompts, sizes: Sizes) -> list[Node]:
    """Trees like W5's at the end of their last level: their nodes that have not been released."""
    draws = random.Random(0)
    nodes = [engine.prefill(prompts(_uneven(draws, sizes.w5_prompt))) for _ in range(sizes.w5_trees)]
    kept = [[root] for root in nodes]
    leaves: list[list[Node]] = []
    for level in range(sizes.w5_levels):
        leaves = [[leaf for node in tree for leaf in node.fork(sizes.w5_leaves // len(tree))] for tree in kept]
        _decode_unevenly(engine, [leaf for tree in leaves for leaf in tree], draws, sizes.w5_tokens)
        if level < sizes.w5_levels - 1:
            kept = [tree[: sizes.w5_kept] for tree in leaves]
            nodes += [leaf for tree in kept for leaf in tree]
            for leaf in (leaf for tree in leaves for leaf in tree[sizes.w5_kept :]):
                leaf.release()
    return nodes + [leaf for tree in leaves for leaf in tree]


def unused_room(engine: Engine, nodes: Sequence[Node]) -> float:
    """Share of the tokens' room in all pages held that no token of `nodes` fills; a copy of a token is no token.

    Raises:
        RuntimeError: the pages are of other nodes too, whose tokens would count as unused.
    """
    stats = engine.stats()
    if sum(len(node.pages) for node in nodes) != stats.pages_held:
        raise RuntimeError(f"{stats.pages_held} pages are held, not all by the nodes given")
    return 1.0 - sum(node.computed for node in nodes) / (stats.pages_held * stats.page_tokens)


def _uneven(draws: random.Random, mean: int) -> int:
    """A length from 1 up whose mean is `mean`."""
    return draws.randint(1, 2 * mean - 1)


def _decode_unevenly(engine: Engine, nodes: Sequence[Node], draws: random.Random, mean: int) -> None:
    """Generate on all nodes, on each another number of tokens."""
    generations = [
        generation
        for node in nodes
        for generation in engine.submit(node, max_tokens=_uneven(draws, mean), ignore_eos=True)
    ]
    while not all(generation.done for generation in generations):
        engine.step()
    raise_first(generations)

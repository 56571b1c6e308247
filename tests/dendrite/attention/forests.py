"""Random forests of nodes with page tables, as the KV cache makes them, for the tests of tree attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st


@dataclass
class Forest:
    """The running rows of some trees.

    Attributes:
        tables: page table of each row, with room for `horizon` more tokens.
        lengths: tokens that each row's query sees.
        pages: pages in use, the scratch page 0 included.
    """

    page_size: int
    horizon: int
    tables: list[npt.NDArray[Any]]
    lengths: npt.NDArray[Any]
    pages: int


@st.composite
def forests(draw: st.DrawFn, max_rows: int = 300, max_segment: int = 600, max_depth: int = 6) -> Forest:
    """Trees of random fan-out and depth, some segments empty, some ending at a page's end; any nodes run."""
    page_size = draw(st.sampled_from([8, 16, 32]))
    horizon = draw(st.sampled_from([0, 1, 7, 32]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, max_rows))
    trees = draw(st.integers(1, min(rows, 8)))
    longest = draw(st.integers(1, max_segment))
    return grow(generator, page_size, horizon, rows, trees, longest, draw(st.integers(1, max_depth)))


def grow(
    generator: np.random.Generator, page_size: int, horizon: int, rows: int, trees: int, longest: int, depth: int
) -> Forest:
    """`rows` nodes of `trees` trees, each segment up to `longest` tokens, each path up to `depth` segments."""
    ids = iter(generator.permutation(rows * (longest * depth // page_size + depth + horizon + 2)) + 1)
    paths: list[tuple[list[int], int, int]] = [([], 0, 0) for _ in range(trees)]
    tables: list[npt.NDArray[Any]] = []
    lengths: list[int] = []
    while len(tables) < rows:
        parent, length, level = paths[int(generator.integers(len(paths)))]
        kind = generator.random()
        new = 0 if kind < 0.1 else int(generator.integers(1, longest + 1))
        if kind > 0.8:
            new += -(length + new) % page_size
        if length + new == 0:
            new = 1
        # A page is shared where the fork lies behind it; the tail page was copied by whoever wrote first.
        table = parent[: length // page_size]
        table = table + [int(next(ids)) for _ in range(-(-(length + new + horizon) // page_size) - len(table))]
        if level + 1 < depth:
            paths.append((table, length + new, level + 1))
        tables.append(np.array(table, generator.choice(["int32", "int64"])))
        lengths.append(length + new)
    used = max(int(table.max(initial=0)) for table in tables) + 1
    return Forest(page_size, horizon, tables, np.array(lengths), used)

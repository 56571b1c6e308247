from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import operation_tables, readme

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "name", "row"),
    [
        ("concepts/engine.md", "pressure", "| share of them that live nodes hold, mean over time | 0."),
        ("operations.md", "soak", "| first model worker | "),
    ],
)
def test_its_page_has_the_block(page: str, name: str, row: str) -> None:
    text = (DOCS / page).read_text()
    filled = readme.refresh(text, operation_tables.OPERATION_BLOCKS)
    assert readme.block_names(text) == [name]
    assert row in filled

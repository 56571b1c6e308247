from __future__ import annotations

from pathlib import Path

from benchmarks import operation_tables, readme

DOCS = Path(__file__).parents[2] / "docs"


def test_its_page_has_the_block() -> None:
    text = (DOCS / "concepts/engine.md").read_text()
    filled = readme.refresh(text, operation_tables.OPERATION_BLOCKS)
    assert readme.block_names(text) == ["pressure"]
    assert "| share of them that live nodes hold, mean over time | 0." in filled

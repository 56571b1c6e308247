from __future__ import annotations

from pathlib import Path

from benchmarks import operation_tables, readme

DOCS = Path(__file__).parents[2] / "docs"


def test_each_block_is_on_its_page() -> None:
    for page, name in (("concepts/engine.md", "pressure"), ("operations.md", "soak")):
        text = (DOCS / page).read_text()
        filled = readme.refresh(text, operation_tables.OPERATION_BLOCKS)
        assert readme.block_names(text) == [name]
        assert len(filled) > len(text)

"""The tables of `docs/profiling.md`."""

from __future__ import annotations

from pathlib import Path

from benchmarks import profile_tables, readme
from benchmarks.site import on_page_markdown

PAGE = Path(__file__).parents[2] / "docs/profiling.md"


def test_the_page_has_every_block_filled() -> None:
    text = PAGE.read_text()
    assert set(readme.block_names(text)) == set(profile_tables.PROFILE_BLOCKS)
    filled = on_page_markdown(text)
    assert filled.count("benchmarks.profile --device cuda") > text.count("benchmarks.profile --device cuda")
    assert on_page_markdown(filled) == filled


def test_a_row_has_the_three_largest_kernels_of_a_step() -> None:
    rows = [line for line in profile_tables.kernels_block().splitlines() if line.startswith("| W")]
    assert len(rows) == 5
    for row in rows:
        shares = [int(cell.rsplit(", ", 1)[1].rstrip("% ")) for cell in row.strip("|").split("|")[1:]]
        assert shares == sorted(shares, reverse=True)
        assert 50 < sum(shares) <= 100

"""Puts the measured figures into the documentation as it is built: a hook of MkDocs (see mkdocs.yml).

A page has blocks like README's, `<!-- results: NAME -->` to `<!-- /results -->`, with nothing between them. They are
filled from benchmarks/results, so that no figure of the site is typed by hand or out of date.
"""

from __future__ import annotations

from typing import Any

from benchmarks.defaults_tables import DEFAULT_BLOCKS
from benchmarks.operation_tables import OPERATION_BLOCKS
from benchmarks.profile_tables import PROFILE_BLOCKS
from benchmarks.readme import BLOCKS, refresh


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with the text of each page before it is rendered."""
    return refresh(markdown, {**BLOCKS, **DEFAULT_BLOCKS, **PROFILE_BLOCKS, **OPERATION_BLOCKS})

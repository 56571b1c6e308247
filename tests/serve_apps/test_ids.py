"""Ids of what a process keeps in memory."""

from __future__ import annotations

import pytest

from serve_apps.ids import Ids


def test_what_another_process_kept_is_gone_and_the_rest_was_never_there() -> None:
    before, now = Ids(), Ids()
    assert len({now.new("tree") for _ in range(100)}) == 100
    lost = now.missing("tree", before.new("tree"))
    assert (lost.status, lost.code) == (410, "tree_lost")


@pytest.mark.parametrize("id", ["", "none", "tree_", "tree_" + "g" * 32, "search_" + "0" * 32, "tree_" + "0" * 31])
def test_what_is_no_id_was_never_there(id: str) -> None:
    assert Ids().missing("tree", id).status == 404
    ids = Ids()
    assert ids.missing("tree", ids.new("tree")).code == "tree_not_found"

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import common


def test_the_processor_is_named() -> None:
    assert re.fullmatch(rf".+ x {len(os.sched_getaffinity(0))}", common.versions()["processor"])


def test_an_archive_knows_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: str) -> str:
        raise subprocess.SubprocessError

    monkeypatch.setattr(common, "_git", no_git)
    archived = tmp_path / "archived_commit.txt"
    monkeypatch.setattr(common, "ARCHIVED", archived)
    for text, commit in (("$Format:%H$\n", "0000000-dirty"), ("0123456789abcdef0123\n", "0123456789ab")):
        archived.write_text(text)
        assert common.commit() == commit


@pytest.mark.skipif(not (common.ROOT / ".git").exists(), reason="this is an archive, where Git has done it")
def test_git_fills_in_the_commit_of_an_archive() -> None:
    assert common.ARCHIVED.read_text() == "$Format:%H$\n"
    assert "benchmarks/archived_commit.txt export-subst" in (common.ROOT / ".gitattributes").read_text()

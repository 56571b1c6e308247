from __future__ import annotations

import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.files import append, replace
from tests.full_disk import full_disk


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8), st.integers(1, 60))
def test_what_does_not_fit_leaves_no_part_of_itself(pieces: list[bytes], room: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        expected = b""
        for piece in pieces:
            fits = len(expected) + len(piece) <= room
            with full_disk(room):
                try:
                    append(file, piece)
                except OSError:
                    assert not fits
                else:
                    assert fits
            expected += piece if fits else b""
            assert path.read_bytes() == expected
        os.close(file)


def test_a_broken_pipe_is_told_as_such() -> None:
    reader, writer = os.pipe()
    append(writer, b"whole")
    assert os.read(reader, 10) == b"whole"
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        append(writer, b"nobody reads")
    os.close(writer)


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace(path, b"old")
    with full_disk(10), pytest.raises(OSError, match="too large"):
        replace(path, b"new" * 10)
    assert path.read_bytes() == b"old"
    replace(path, b"new" * 10)
    assert path.read_bytes() == b"new" * 10
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_new_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace(path, b"old")
    synced: list[tuple[int, bytes]] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        fsync(file)
        synced.append((os.fstat(file).st_ino, path.read_bytes()))
        assert stat.S_ISDIR(os.fstat(file).st_mode) == (len(synced) == 2)

    monkeypatch.setattr(os, "fsync", noted)
    replace(path, b"new")
    assert synced == [(path.stat().st_ino, b"old"), (tmp_path.stat().st_ino, b"new")]

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path

import pytest

from dendrite.search.tasks.source import Source, TaskFileError


def write(folder: Path, text: str | bytes, name: str = "my_task.py") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_file_is_run_once_for_its_text(tmp_path: Path) -> None:
    file = write(tmp_path, "calls = []\n")
    module = Source.read(file).module()
    assert Source.read(file).module() is module
    write(tmp_path, "calls = [1]\n")
    assert Source.read(file).module().calls == [1]
    assert module.calls == []
    assert module.__file__ == str(file)


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    first = Source.read(write(tmp_path / "a", "def where(): return __name__\n")).module()
    second = Source.read(write(tmp_path / "b", "def where(): return __name__\n")).module()
    assert first is not second
    assert sys.modules[first.where()] is first
    assert sys.modules[second.where()] is second


def test_the_text_is_enough_where_the_file_is_not(tmp_path: Path) -> None:
    file = write(
        tmp_path, "from dataclasses import dataclass\n@dataclass\nclass A:\n    b: 'int'\n    def fail(self): 1 / 0\n"
    )
    data = pickle.dumps(Source.read(file))
    file.unlink()
    module = pickle.loads(data).module()
    assert module.A(3).b == 3
    with pytest.raises(ZeroDivisionError) as caught:
        module.A(3).fail()
    assert "def fail(self): 1 / 0" in "".join(traceback.format_exception(caught.value)), "the line is shown"


def test_the_declared_encoding_and_any_newline_are_read(tmp_path: Path) -> None:
    file = write(tmp_path, "# coding: latin-1\r\nname = 'Zürich'\r\n".encode("latin-1"))
    assert Source.read(file).module().name == "Zürich"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("x = 1\ndef f(:\n", 2, "syntax error"),
        ("x = 1\n\nx.nothing\n", 3, "AttributeError: 'int' object has no attribute 'nothing'"),
        ("def f():\n    raise ValueError('no')\nf()\n", 2, "ValueError: no"),
        ("import nothing_of_that_name\n", 1, "ModuleNotFoundError"),
        (b"x = '\xff'\n", None, "decoded"),
        (b"# coding: no-such-coding\n", None, "decoded"),
    ],
)
def test_a_file_that_does_not_run_is_refused_with_the_line(
    text: str | bytes, line: int | None, reason: str, tmp_path: Path
) -> None:
    before = set(sys.modules)
    file = write(tmp_path, text)
    with pytest.raises(TaskFileError, match=reason) as caught:
        Source.read(file).module()
    assert (caught.value.file, caught.value.line) == (str(file), line)
    assert str(caught.value).startswith(f"{file}, line {line}: " if line else f"{file}: ")
    assert not [name for name in set(sys.modules) - before if name.startswith("dendrite_task_")]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.line) == (str(caught.value), line)


def test_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(TaskFileError) as caught:
            Source.read(path)
        assert caught.value.file == str(path)
        assert caught.value.line is None

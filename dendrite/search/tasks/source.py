"""Running a Python file that need not be there: its text travels with what came of it."""

from __future__ import annotations

import hashlib
import sys
import traceback
from dataclasses import dataclass, field
from importlib.abc import ExecutionLoader
from importlib.util import decode_source, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from dendrite.errors import DendriteError


class TaskFileError(DendriteError):
    """A file that should define a task cannot be used: names the file, the line (None: the whole file) and why."""

    def __init__(self, file: str, line: int | None, reason: str) -> None:
        self.file, self.line, self.reason = file, line, reason
        super().__init__(f"{file}: {reason}" if line is None else f"{file}, line {line}: {reason}")


@dataclass(frozen=True, slots=True)
class Source:
    """A Python file: its name, and its text when it was read."""

    file: str
    text: str = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> Source:
        """Read a file, in UTF-8 or in the encoding that it declares.

        Raises:
            TaskFileError: There is no such file, or it can't be read.
        """
        try:
            return cls(str(file), decode_source(file.read_bytes()))
        except OSError as error:
            raise TaskFileError(str(file), None, error.strerror or str(error)) from error
        except (UnicodeDecodeError, SyntaxError) as error:
            raise TaskFileError(str(file), None, f"cannot be decoded: {error}") from error

    def module(self) -> ModuleType:
        """Run the text, once in a process, as a module whose name no other file or text has.

        Raises:
            TaskFileError: The text is no Python, or raised an error, which is the cause.
        """
        name = f"dendrite_task_{hashlib.sha256(repr((self.file, self.text)).encode()).hexdigest()[:16]}"
        module = sys.modules.get(name)
        if module is not None and isinstance(module.__loader__, _TextLoader) and module.__loader__.done:
            return module
        loader = _TextLoader(self)
        spec = spec_from_loader(name, loader)
        assert spec is not None, "the loader makes a spec of any name"
        module = module_from_spec(spec)
        sys.modules[name] = module  # dataclasses, for one, look their module up while it runs
        try:
            loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, Exception):
                raise self._failure(error) from error
            raise
        return module

    def _failure(self, error: Exception) -> TaskFileError:
        if isinstance(error, SyntaxError) and error.filename == self.file:
            return TaskFileError(self.file, error.lineno, f"syntax error: {error.msg}")
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        return TaskFileError(self.file, lines[-1] if lines else None, f"{type(error).__name__}: {error}")


class _TextLoader(ExecutionLoader):
    """Runs a module from text, and shows its lines in tracebacks where the file isn't."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.done = False

    def get_filename(self, fullname: str) -> str:
        return self._source.file

    def get_source(self, fullname: str) -> str:
        return self._source.text

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        self.done = True

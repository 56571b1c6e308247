"""The results of a job: one line of JSON an input, appended as they come, whatever ends the process.

A line is the `Outcome` of a problem and, beside its `index`, the `input` (a digest of the problem), the `attempts` that
were made, and `elapsed`, the seconds that the job had run when the line was written. Only the last line can be cut off,
and it is then cut away before another is written. A problem that failed and is tried again has a second line, which
counts; compaction leaves one line an input.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dendrite.errors import DendriteError, InvalidArgument
from dendrite.files import append, replace
from dendrite.job_lock import JobLock, Run
from dendrite.jobs import Outcome
from dendrite.search.task import Task


class JobFileError(DendriteError):
    """The files of a job cannot be used: names the file, the line (None: the whole file) and why."""

    def __init__(self, file: str, line: int | None, reason: str) -> None:
        self.file, self.line, self.reason = file, line, reason
        super().__init__(f"{file}: {reason}" if line is None else f"{file}, line {line}: {reason}")


def digest(fields: Mapping[str, Any]) -> str:
    """A short digest of what a problem is made of, which must be JSON values. The order of the fields is no matter."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def task_digest(task: Task) -> str:
    """A digest of a problem that its name and prompt tell from others."""
    return digest({"task": task.name, "prompt": task.prompt})


@dataclass(frozen=True, slots=True)
class Entry:
    """What a line says of its problem, in short. `error` is the reason of a failure, None where there is a result."""

    index: int
    input: str
    attempts: int
    elapsed: float
    solved: bool
    tokens: int
    error: str | None

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """Read a line.

        Raises:
            ValueError: it is none of a job's results, and why.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("must be a JSON object")
        if "error" in fields and "message" not in fields:
            raise ValueError("an error without a message is not what a job writes")
        error = f"{fields['error']}: {fields['message']}" if "error" in fields else None
        known = {name: fields.get(name) for name in ("index", "input", "attempts", "elapsed")}
        known |= {"solved": False, "tokens": 0} if error else {name: fields.get(name) for name in ("solved", "tokens")}
        for name, kinds in _KINDS.items():
            if not isinstance(known[name], kinds):
                raise ValueError(f"{name}={known[name]!r} is not what a job writes")
        return cls(error=error, **known)  # type: ignore[arg-type]  # the kinds are checked


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "index": int,
    "input": str,
    "attempts": int,
    "elapsed": (int, float),
    "solved": bool,
    "tokens": int,
}


@dataclass(slots=True)
class Contents:
    """What a file of results holds: the last entry of each index, and the sums over these.

    `lines` counts whole lines, and `size` the bytes up to the end of the last.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    lines: int = 0
    size: int = 0
    elapsed: float = 0.0
    solved: int = 0
    failed: int = 0
    tokens: int = 0

    @classmethod
    def read(cls, path: Path) -> Contents:
        """Read a file of results, which may be written meanwhile; one that is not there is empty.

        Raises:
            JobFileError: it can't be read, or a whole line is none of a job's results.
        """
        contents = cls()
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                entry = Entry.parse(line)
            except ValueError as error:
                raise JobFileError(str(path), number, f"is no result of a job: {error}") from None
            contents.add(entry, len(line))
        return contents

    def add(self, entry: Entry, size: int) -> None:
        """Count a line of `size` bytes; it replaces what was there of its index."""
        if (old := self.entries.get(entry.index)) is not None:
            self._count(old, -1)
        self.entries[entry.index] = entry
        self._count(entry, 1)
        self.lines += 1
        self.size += size
        self.elapsed = max(self.elapsed, entry.elapsed)

    @property
    def first_error(self) -> str | None:
        """The reason of the failed problem that comes first; None without one."""
        if not self.failed:
            return None
        return min((index, entry.error) for index, entry in self.entries.items() if entry.error is not None)[1]

    def _count(self, entry: Entry, sign: int) -> None:
        self.solved += sign * entry.solved
        self.failed += sign * (entry.error is not None)
        self.tokens += sign * entry.tokens


class JobFile:
    """The file of a job's results, open for this process alone. Use as a context manager, or `close` it."""

    def __init__(self, path: Path, inputs: Sequence[str], lock: JobLock | None = None) -> None:
        """Open the file, or create it; a last line that was cut off is cut away.

        Args:
            path: of the file.
            inputs: the digests of all problems of the job, in order.
            lock: on the file, which is closed with it; None takes it.

        Raises:
            InvalidArgument: it cannot be written there.
            JobLocked: another process writes it.
            JobFileError: it holds something else, or results of other problems.
        """
        self.path, self.inputs = path, tuple(inputs)
        self._file = -1
        self._lock = lock if lock is not None else JobLock(path)
        try:
            self.contents = Contents.read(path)
            self._check()
            self._open()
            os.ftruncate(self._file, self.contents.size)
            self.begin(len(self.pending()))
        except BaseException:
            self.close()
            raise

    def begin(self, pending: int) -> None:
        """Note that a run begins, in which so many problems are to be searched."""
        self.run = Run.begin(self.contents.lines, self.contents.elapsed, pending)
        self._lock.tell(self.run)

    def pending(self, *, retry_failed: bool = False) -> list[int]:
        """The problems without a result, by index; with `retry_failed` also those that failed."""
        entries = self.contents.entries
        return [
            index
            for index in range(len(self.inputs))
            if index not in entries or (retry_failed and entries[index].error is not None)
        ]

    def write(self, outcome: Outcome, attempts: int) -> None:
        """Append what became of a problem, after so many attempts of this run; it is on the disk at the return.

        Raises:
            JobFileError: it cannot be written; the lines before it stay whole.
        """
        before = self.contents.entries.get(outcome.index)
        told = {
            "index": outcome.index,
            "input": self.inputs[outcome.index],
            "attempts": attempts + (before.attempts if before is not None else 0),
            "elapsed": round(self.run.seconds, 3),
            **outcome.to_dict(),
        }
        line = json.dumps(told).encode() + b"\n"
        try:
            append(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            raise JobFileError(str(self.path), None, f"cannot be written: {error.strerror}") from error
        self.contents.add(Entry.parse(line), len(line))

    def compact(self, *, sort: bool = False) -> None:
        """Leave one line an input, the last; in the order of the inputs if `sort`, else in that of their first lines.

        The new file takes the place of the old one at once, so that there is always a whole one.

        Raises:
            JobFileError: it cannot be written.
        """
        lines: dict[int, bytes] = {}
        for line in _whole_lines(self.path):
            lines[Entry.parse(line).index] = line
        order = sorted(lines) if sort else list(lines)
        if len(lines) == self.contents.lines and order == list(lines):
            return
        try:
            replace(self.path, b"".join(lines[index] for index in order))
        except OSError as error:
            raise JobFileError(str(self.path), None, f"cannot be compacted: {error.strerror}") from error
        os.close(self._file)
        self._open()
        self.contents = Contents.read(self.path)

    def close(self) -> None:
        """Close the file, and let others write it. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.close()

    def _check(self) -> None:
        """Refuse results of other problems."""
        for index, entry in self.contents.entries.items():
            if not 0 <= index < len(self.inputs):
                raise JobFileError(str(self.path), None, f"holds a result of index {index}, beyond the job's problems")
            if entry.input != self.inputs[index]:
                raise JobFileError(str(self.path), None, f"its result of index {index} is of another problem")

    def _open(self) -> None:
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InvalidArgument("out", str(self.path), f"cannot be written: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, but a last one that was cut off; none if there is no such file."""
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise JobFileError(str(path), None, f"cannot be read: {error.strerror}") from None

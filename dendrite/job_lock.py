"""Who writes a job's results: one process at a time, known to all."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dendrite.errors import DendriteError, InvalidArgument

_TRIES, _PAUSE_S = 10, 0.02  # `running` holds the lock for a moment, which must not keep a job from starting


class JobLocked(DendriteError):
    """Another process writes the results: names the file, and the process where it has said who it is."""

    def __init__(self, file: str, holder: Run | None) -> None:
        self.file, self.holder = file, holder
        who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
        super().__init__(f"{file} is being written by {who}")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job, as its lock file tells it.

    `began` is in seconds of Unix time. When it began, the job had `lines` lines and had run for `elapsed` seconds, and
    `pending` problems were to be searched.
    """

    pid: int
    host: str
    began: float
    lines: int
    elapsed: float
    pending: int

    @classmethod
    def begin(cls, lines: int, elapsed: float, pending: int) -> Run:
        """A run of this process, from now on."""
        return cls(os.getpid(), socket.gethostname(), time.time(), lines, elapsed, pending)

    @property
    def seconds(self) -> float:
        """How long the job has run by now, in all its runs."""
        return self.elapsed + max(0.0, time.time() - self.began)

    def eta(self, lines: int) -> float | None:
        """Seconds to the end at the pace of this run, once there are so many `lines`; None before its first."""
        ended = lines - self.lines
        if ended <= 0:
            return None if self.pending else 0.0
        return (self.seconds - self.elapsed) / ended * max(0, self.pending - ended)


class JobLock:
    """The right to write a file of results, held until `close` or the end of the process, however that comes.

    It is a lock of the operating system on a file beside the results, which is removed with it. The file of a process
    that was killed stays, unlocked, and is taken over.
    """

    def __init__(self, out: Path) -> None:
        """Take the lock; the folder is made if need be.

        Raises:
            JobLocked: another process holds it.
            InvalidArgument: the lock's file cannot be made.
        """
        self._path = lock_path(out)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._file = _acquired(self._path, out)
        except OSError as error:
            raise InvalidArgument("out", str(out), f"cannot be written: {error.strerror}") from None

    def tell(self, run: Run) -> None:
        """Write down what the process is doing, for `running`."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(asdict(run)).encode(), 0)

    def close(self) -> None:
        """Give the lock up. Idempotent."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)  # before it is free, so that no one else's is removed
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_path(out: Path) -> Path:
    """Where the lock of a file of results lies."""
    return out.with_name(out.name + ".lock")


def running(out: Path) -> tuple[bool, Run | None]:
    """Whether a process writes these results now, and what it has told of its run."""
    try:
        file = os.open(lock_path(out), os.O_RDONLY)
    except FileNotFoundError:
        return False, None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, _told(file)
    finally:
        os.close(file)
    return False, None


def _acquired(path: Path, out: Path) -> int:
    for remaining in reversed(range(_TRIES)):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except BlockingIOError:
            if not remaining:
                holder = _told(file)
                os.close(file)
                raise JobLocked(str(out), holder) from None
        os.close(file)
        time.sleep(_PAUSE_S)
    raise JobLocked(str(out), None)


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`, which its last holder may have removed."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _told(file: int) -> Run | None:
    try:
        return Run(**json.loads(os.pread(file, 4_096, 0)))
    except (ValueError, TypeError):
        return None  # it has the lock, and is about to say

"""The event log of a search: written as it goes, and read to take a search up again.

A search is a function of what the backend returns and in which order. The log holds both, so that a search is taken up
again by running it anew from the start, fed with what is on record (see `Recorded`), until the record ends.
docs/trace.md describes the file.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dendrite.errors import InvalidArgument, TraceEnded, TraceError
from dendrite.files import append
from dendrite.search.backend import Branch
from dendrite.search.expansion import Child, Expansion
from dendrite.search.trace_events import SCHEMA

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An expansion on record: which call it was, at what time it returned, and what came of it."""

    call: int
    time: float
    expansion: Expansion


@dataclass(slots=True)
class Record:
    """What a log holds of a search: its header, the calls that were made, and the batches in which they returned.

    `prompts` holds the tokens of the roots; without that of node 0 there is nothing to go on from. `size` is the number
    of bytes up to the end of the last whole batch: what a resumed search keeps of the file.
    """

    header: Event
    calls: dict[int, Event] = field(default_factory=dict)
    batches: deque[list[Recorded]] = field(default_factory=deque)
    prompts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    size: int = 0

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a log; a last line that was cut off is left out.

        Raises:
            TraceError: it can't be read, is not such a log, or has another schema.
        """
        lines = list(read_lines(path))
        if not lines:
            return cls({})
        if lines[0][1]["event"] != "search":
            raise TraceError(str(path), 1, 'must begin with an event "search"')
        record = cls(lines[0][1])
        if record.header.get("schema") != SCHEMA:
            raise TraceError(str(path), 1, f"schema {record.header.get('schema')!r} is not {SCHEMA}")
        waiting: list[Recorded] = []
        for number, (end, event) in enumerate(lines, start=1):
            try:
                record._take(end, event, waiting)
            except (KeyError, TypeError) as error:
                raise TraceError(str(path), number, f"not a whole event: {error!r}") from error
        return record

    def _take(self, end: int, event: Event, waiting: list[Recorded]) -> None:
        kind = event["event"]
        if kind == "root":
            self.prompts[event["node"]] = tuple(event["tokens"])
            self.size = self.size or end
        elif kind == "expand":
            self.calls[event["call"]] = event
        elif kind == "children":
            waiting.append(Recorded(event["call"], event["time"], _expansion(event)))
            if len(waiting) == event["of"]:
                self.batches.append(waiting.copy())
                waiting.clear()
                self.size = end
        elif kind == "resumed":
            waiting.clear()


def _expansion(event: Event) -> Expansion:
    return Expansion(tuple(map(_child, event["children"])), event["reward_calls"])


def _child(told: Event) -> Child:
    branch = Branch(
        node=None,
        tokens=tuple(told["tokens"]),
        text=told["text"],
        logprobs=tuple(told["logprobs"]),
        value=told["value"],
        finish_reason=told["finish_reason"],
        pages=told["pages"],
        worker=told["worker"],
    )
    return Child(branch, told["value"], told["reward"], told["ended"])


def read_lines(path: Path) -> Iterator[tuple[int, Event]]:
    """The events of a log, each with the number of bytes up to its end; a last line that was cut off is left out.

    Raises:
        TraceError: the file can't be read, or a line is not a JSON object with an `event`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(str(path), None, error.strerror or "cannot be read") from None
    end = 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        end += len(line)
        if not line.endswith(b"\n"):
            return
        try:
            event = json.loads(line)
        except ValueError as error:
            raise TraceError(str(path), number, f"not JSON: {error}") from None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise TraceError(str(path), number, 'not an object with an "event"')
        yield end, event


class Trace:
    """The log of one search: what is on record of it is given back, and what happens after that is written down.

    Without a path nothing is kept. While there is a record, `now` is the recorded time and nothing is written, for it
    is in the file; `replay_only` ends the search with the record instead of going on from there.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        resume: bool = False,
        replay_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
        listener: Callable[[Event], None] | None = None,
    ) -> None:
        """Begin a log, or take one up.

        Args:
            path: of the file. One that is there is replaced, unless it is taken up.
            resume: go on from what is in the file; one that is not there is begun.
            replay_only: only read the file.
            clock: monotonic seconds.
            listener: told of each event as it happens, whether or not there is a file.

        Raises:
            InvalidArgument: the file cannot be written.
            TraceError: it cannot be read as a log.
        """
        self.replay_only = replay_only
        self.path = str(path)
        self._clock = clock
        self._listener = listener
        self._record = Record.read(path) if path is not None and (replay_only or (resume and path.exists())) else None
        if self._record is not None and 0 not in self._record.prompts:
            self._record = None
        self._file = _open(path) if path is not None and not replay_only else None
        self._keep: int | None = self._record.size if self._record is not None else 0
        self._time = 0.0
        self._start = clock()
        self._batch = 0

    @property
    def header(self) -> Event | None:
        """The first event on record; None for a search that begins."""
        return self._record.header if self._record is not None else None

    def prompt(self, root: int) -> tuple[int, ...] | None:
        """The tokens of a root's prompt, by the record; None if the search is past that."""
        if self._record is None or (root and not self.replaying):
            return None
        return self._record.prompts.get(root)

    @property
    def elapsed(self) -> float:
        """Seconds that the search had spent when its record ends."""
        if self._record is None or not self._record.batches:
            return 0.0
        return self._record.batches[-1][-1].time

    @property
    def replaying(self) -> bool:
        """Whether there is something on record that has not been given back."""
        return self._record is not None and bool(self._record.batches)

    @property
    def writing(self) -> bool:
        """Whether events are written down now."""
        return (self._file is not None or self._listener is not None) and not self.replaying

    def now(self) -> float:
        """Seconds since the search began, the time between its runs left out."""
        return self._time if self.replaying else self._time + self._clock() - self._start

    def check_call(self, call: int, node: int, children: int, seed: int) -> None:
        """While there is a record, an expansion that is started must be on it.

        Raises:
            TraceError: the record has another expansion in its place, or none: it is of another search or version.
        """
        assert self._record is not None
        seen = self._record.calls.get(call)
        if seen is None:
            raise TraceError(self.path, None, f"has no expansion {call}: this is the record of another search")
        for name, value in (("node", node), ("n", children), ("seed", seed)):
            if seen.get(name) != value:
                differs = f"expansion {call} has {name}={seen.get(name)!r}, not {value!r}"
                raise TraceError(self.path, None, f"{differs}: this is the record of another search")

    def check_live(self) -> None:
        """Refuse to go on after the record of a search that is only replayed.

        Raises:
            TraceEnded: always then.
        """
        if self.replay_only:
            raise TraceEnded(self.path, None, "the search had not ended")

    def next_batch(self) -> list[Recorded]:
        """The expansions that returned next, by the record; `batch_taken` is to follow."""
        assert self._record is not None
        self._time = self._record.batches[0][-1].time
        self._batch += 1
        return self._record.batches[0]

    def batch_taken(self) -> None:
        """Go on to the next batch on record; after the last, what happens is written down again."""
        assert self._record is not None
        self._record.batches.popleft()
        if not self._record.batches:
            self._start = self._clock()
            self._record.calls.clear()
            self.write("resumed")

    def begin_batch(self) -> int:
        """Number the expansions that return together."""
        self._batch += 1
        return self._batch

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, and tell the listener; not while there is a record.

        Raises:
            InvalidArgument: the file cannot be written; the events before it stay whole, and no more are written.
        """
        if not self.writing:
            return
        told = {"event": event, "time": round(self.now(), 6), **fields}
        if self._listener is not None:
            self._listener(told)
        if self._file is None:
            return
        if self._keep is not None:  # not before now: a record that turns out to be of another search stays as it is
            os.ftruncate(self._file, self._keep)
            self._keep = None
        try:
            append(self._file, json.dumps(told, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            self.close()
            raise _unwritable(self.path, error) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise _unwritable(str(path), error) from None


def _unwritable(path: str, error: OSError) -> InvalidArgument:
    return InvalidArgument("trace", path, f"cannot be written: {error.strerror}")

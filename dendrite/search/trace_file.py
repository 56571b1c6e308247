"""Reading a trace: its events, each checked against those before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError
from pydantic_core import from_json

from dendrite.errors import TraceError
from dendrite.search.trace_events import (
    KINDS,
    SCHEMA,
    BackupEvent,
    CancelledEvent,
    ChildRecord,
    ChildrenEvent,
    ExpandEvent,
    ReleaseEvent,
    ResultEvent,
    ResumedEvent,
    RootEvent,
    RootMovedEvent,
    SearchEvent,
    TraceEvent,
)
from dendrite.search.trace_tree import TraceNode, TraceTree


def read_trace(path: Path | str) -> TraceTree:
    """Read a trace of schema 1.

    Events of an unknown kind and unknown fields are skipped. A last line that was cut is left out.

    Raises:
        TraceError: The file cannot be read, has no whole first line, is of another schema, or contradicts itself.
    """
    reader = _Reader(str(path))
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise TraceError(str(path), None, error.strerror or str(error)) from error
    lines = content.split(b"\n")
    rest = lines.pop()
    for line in lines:
        reader.read(line)
    # What follows the last line break is a whole line without its break, or a cut one.
    if rest and _is_object(rest):
        reader.read(rest)
        rest = b""
    return reader.trace(whole=not rest)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(from_json(line), dict)
    except ValueError:
        return False


class _Reader:
    """Takes a trace in, line by line, and checks each against what came before."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.line = 0
        self.header: SearchEvent | None = None
        self.events: list[TraceEvent] = []
        self.nodes: dict[int, TraceNode] = {}
        self.children: dict[int, list[int]] = {}
        self.values: dict[int, list[float]] = {}
        self.released: set[int] = set()
        self.open: dict[int, int] = {}
        """Calls in flight, with the node that each expands."""
        self.root = 0
        self.result: ResultEvent | None = None

    def read(self, line: bytes) -> None:
        """Take one line in."""
        self.line += 1
        try:
            fields = from_json(line, allow_inf_nan=False)
        except ValueError as error:
            raise self._error(f"is not JSON: {error}") from error
        kind = fields.get("event") if isinstance(fields, dict) else None
        if not isinstance(kind, str):
            raise self._error("is not an event")
        if self.header is None and kind != "search":
            raise self._error("the first event of a trace is 'search'")
        if kind == "search" and fields.get("schema") != SCHEMA:
            raise self._error(f"schema {fields.get('schema')!r} is not one that this version reads ({SCHEMA})")
        if kind in KINDS:
            event = self._parse(KINDS[kind], line)
            self._take(event)
            self.events.append(event)

    def _parse(self, kind: type[TraceEvent], line: bytes) -> TraceEvent:
        try:
            return kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "event"
            raise self._error(f"{place}: {first['msg']}") from error

    def _take(self, event: TraceEvent) -> None:
        if isinstance(event, SearchEvent):
            if self.header is not None:
                raise self._error("a second search begins; a trace holds one")
            self.header = event
        elif isinstance(event, RootEvent):
            self._add(event.node, None, event, event.time)
        elif isinstance(event, ExpandEvent):
            self._known(event.node)
            if event.call in self.open:
                raise self._error(f"call {event.call} is already in flight")
            self.open[event.call] = event.node
        elif isinstance(event, ChildrenEvent):
            if self.open.pop(event.call, None) != event.node:
                raise self._error(f"no call {event.call} that expands node {event.node} is in flight")
            for child in event.children:
                self._add(child.node, event, child, event.time)
        elif isinstance(event, CancelledEvent):
            if self.open.pop(event.call, None) is None:
                raise self._error(f"no call {event.call} is in flight")
        elif isinstance(event, BackupEvent):
            for node in self._lineage(event.node):
                self.values.setdefault(node, []).append(event.value)
        elif isinstance(event, ReleaseEvent):
            self._known(event.node)
            self.released.update(self._subtree(event.node) if event.subtree else (event.node,))
        elif isinstance(event, RootMovedEvent):
            self.root = self._known(event.node)
        elif isinstance(event, ResumedEvent):
            self.result = None
        else:
            self.result = event

    def _add(self, node: int, call: ChildrenEvent | None, record: ChildRecord | RootEvent, time: float) -> None:
        if node in self.nodes:
            raise self._error(f"node {node} is there already")
        child = record if isinstance(record, ChildRecord) else None
        self.nodes[node] = TraceNode(
            id=node,
            parent=call.node if call else None,
            depth=self.nodes[call.node].depth + 1 if call else 0,
            text=child.text if child else "",
            tokens=record.tokens,
            logprobs=child.logprobs if child else (),
            value=child.value if child else None,
            reward=record.reward,
            ended=record.ended,
            finish_reason=child.finish_reason if child else None,
            pages=child.pages if child else None,
            worker=child.worker if child else None,
            call=call.call if call else None,
            batch=call.batch if call else None,
            time=time,
        )
        self.children[node] = []
        if call:
            self.children[call.node].append(node)

    def _known(self, node: int) -> int:
        if node not in self.nodes:
            raise self._error(f"node {node} is not known yet")
        return node

    def _lineage(self, node: int) -> Iterator[int]:
        place: int | None = self._known(node)
        while place is not None:
            yield place
            place = self.nodes[place].parent

    def _subtree(self, node: int) -> Iterator[int]:
        rest = [node]
        while rest:
            place = rest.pop()
            rest.extend(self.children[place])
            yield place

    def _error(self, reason: str) -> TraceError:
        return TraceError(self.file, self.line, reason)

    def trace(self, *, whole: bool) -> TraceTree:
        """The trace as far as it has been read."""
        if self.header is None:
            raise TraceError(self.file, None, "has no whole first line")
        priors = {place: prior for children in self.children.values() for place, prior in self._priors(children)}
        nodes = {place: self._finished(node, priors.get(place)) for place, node in self.nodes.items()}
        return TraceTree(
            file=self.file,
            header=self.header,
            events=tuple(self.events),
            nodes=MappingProxyType(nodes),
            root=self.root,
            result=self.result,
            whole=whole,
        )

    def _finished(self, node: TraceNode, prior: float | None) -> TraceNode:
        values = self.values.get(node.id, [])
        return dataclasses.replace(
            node,
            children=tuple(self.children[node.id]),
            visits=len(values),
            mean=math.fsum(values) / len(values) if values else None,
            prior=prior,
            released=node.id in self.released,
        )

    def _priors(self, siblings: list[int]) -> Iterator[tuple[int, float]]:
        """Softmax of the siblings' summed log-probabilities; none where one of them has none."""
        nodes = [self.nodes[place] for place in siblings]
        if not nodes or not all(node.logprobs or not node.tokens for node in nodes):
            return
        logprobs = [math.fsum(node.logprobs) for node in nodes]
        top = max(logprobs)
        weights = [math.exp(logprob - top) for logprob in logprobs]
        total = math.fsum(weights)
        yield from ((node.id, weight / total) for node, weight in zip(nodes, weights, strict=True))

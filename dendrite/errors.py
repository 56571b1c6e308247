"""Every error that Dendrite raises on purpose.

All derive from `DendriteError`, carry what went wrong as attributes, and survive pickling, so that a caller on the
other side of a Ray call catches the same type with the same fields.
"""

from __future__ import annotations

from typing import Any


class DendriteError(Exception):
    """Base of all errors raised by Dendrite."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the instance's fields instead of from the message in `args`."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[DendriteError], args: tuple[Any, ...], fields: dict[str, Any]) -> DendriteError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class InvalidArgument(DendriteError, ValueError):
    """An argument is out of range or of the wrong kind; names the field, the value and the limit."""

    def __init__(self, field: str, value: object, limit: str) -> None:
        self.field, self.value, self.limit = field, repr(value)[:200], limit
        super().__init__(f"{field}={self.value}: {limit}")


class GrammarError(DendriteError):
    """A grammar cannot be used, or cannot be followed any further: names the place in it and why.

    `path` is a JSONPath into a schema (`$.properties.age`), else the kind of grammar (`regex`, `lark`).
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"grammar at {path}: {reason}")


class MissingDependency(DendriteError):
    """Something that is not part of Dendrite is needed and is not there: names it, why, and how to get it."""

    def __init__(self, package: str, why: str, remedy: str) -> None:
        self.package, self.why, self.remedy = package, why, remedy
        super().__init__(f"{package} is missing: {why}; {remedy}")


class OutOfPages(DendriteError):
    """The KV pool cannot supply the pages asked for, even after eviction; nothing was changed."""

    def __init__(self, need: int, free: int) -> None:
        self.need, self.free = need, free
        super().__init__(f"out of KV pages: need {need}, free {free}")


class KvFormatMismatch(DendriteError):
    """The KV was written by another model, or in another type or shape: names the first field that differs."""

    def __init__(self, field: str, found: object, expected: object) -> None:
        self.field, self.found, self.expected = field, repr(found), repr(expected)
        super().__init__(f"KV of another format: {field}={self.found}, this engine has {self.expected}")


class KvNotComputed(DendriteError):
    """A node's KV is not all written, or was dropped to make room: its first `computed` tokens have theirs."""

    def __init__(self, tree: int, node: int, computed: int) -> None:
        self.tree, self.node, self.computed = tree, node, computed
        super().__init__(f"only the first {computed} tokens of node {node} of tree {tree} have their KV")


class NodeReleased(DendriteError):
    """An operation was tried on a node that its holder has released."""

    def __init__(self, tree: int, node: int) -> None:
        self.tree, self.node = tree, node
        super().__init__(f"node {node} of tree {tree} has been released")


class UnknownNode(DendriteError, KeyError):
    """No such node is held here (never created, released, or reclaimed with its lease)."""

    def __init__(self, tree: int, node: int) -> None:
        self.tree, self.node = tree, node
        super().__init__(f"node {node} of tree {tree} is not known here")

    def __str__(self) -> str:
        return str(self.args[0])


class InvariantViolation(DendriteError, AssertionError):
    """A KV invariant does not hold: a defect in Dendrite, never the caller's fault."""


class Cancelled(DendriteError):
    """The generation was cancelled before it finished."""


class ContextOverflow(DendriteError):
    """A path would grow past the longest context the model or the KV pool can hold."""

    def __init__(self, tokens: int, limit: int) -> None:
        self.tokens, self.limit = tokens, limit
        super().__init__(f"a context of {tokens} tokens is over the limit of {limit}")


class RunningEventLoop(DendriteError, RuntimeError):
    """A function that waits for an event loop to finish was called from within one."""

    def __init__(self, function: str, twin: str) -> None:
        self.function, self.twin = function, twin
        super().__init__(f"{function} cannot be called from a running event loop; await {twin} instead")


class ModelError(DendriteError):
    """A model folder cannot be loaded."""


class ModelNotFound(ModelError):
    """There is no model folder at that path, and no packaged model of that name."""

    def __init__(self, name: str, known: tuple[str, ...] = ()) -> None:
        self.name, self.known = name, known
        hint = f"; packaged models: {', '.join(known)}" if known else ""
        super().__init__(f"no model folder at {name!r}{hint}")


class UnsupportedModel(ModelError):
    """The architecture, or an option in its config, is not one that Dendrite implements."""


class MissingTensor(ModelError):
    """A tensor that the architecture needs is in none of the folder's files."""

    def __init__(self, tensor: str, folder: str) -> None:
        self.tensor, self.folder = tensor, folder
        super().__init__(f"tensor {tensor!r} is missing from {folder}")


class TensorShapeMismatch(ModelError):
    """A tensor's shape differs from what the config calls for."""

    def __init__(self, tensor: str, found: tuple[int, ...], expected: tuple[int, ...], file: str) -> None:
        self.tensor, self.found, self.expected, self.file = tensor, found, expected, file
        super().__init__(f"tensor {tensor!r} in {file} has shape {list(found)}, expected {list(expected)}")


class CorruptFile(ModelError):
    """A file of the model folder cannot be read as what its name says."""

    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(f"{file} cannot be read: {reason}")


class ServerError(DendriteError):
    """The HTTP server cannot be started."""


class ClusterError(DendriteError):
    """The cluster cannot do what was asked (no worker, a worker that died, Ray not reachable)."""


class LeaseExpired(ClusterError):
    """The lease that held the tree has run out; its nodes have been reclaimed."""

    def __init__(self, tree: int) -> None:
        self.tree = tree
        super().__init__(f"the lease on tree {tree} has expired")


class TraceError(DendriteError):
    """A trace, or a file made of traces, cannot be read: names the file, the line (None: the whole file) and why."""

    def __init__(self, file: str, line: int | None, reason: str) -> None:
        self.file, self.line, self.reason = file, line, reason
        place = file if line is None else f"{file}, line {line}"
        super().__init__(f"{place}: {reason}")


class TraceEnded(TraceError):
    """A trace that is only replayed ends before its search does."""


class StaleEpoch(ClusterError):
    """A message from, or to, an incarnation of a process that a later one has replaced; nothing was changed."""

    def __init__(self, process: str, epoch: int, current: int) -> None:
        self.process, self.epoch, self.current = process, epoch, current
        super().__init__(f"{process} is in epoch {current}, the message is of epoch {epoch}")


class Overloaded(ClusterError):
    """A worker has as many calls under way as it takes; one should end within `retry_after_s` seconds."""

    def __init__(self, worker: int, limit: int, retry_after_s: float) -> None:
        self.worker, self.limit, self.retry_after_s = worker, limit, retry_after_s
        super().__init__(f"worker {worker} has {limit} calls under way; try again in {retry_after_s:.3g} s")


class WorkerDraining(ClusterError):
    """A worker is being emptied and takes no more work; another one has to do it."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        super().__init__(f"worker {worker} is draining")


class RankLost(ClusterError):
    """A rank of a tensor-parallel group has died or failed, and with it the group. `rank` is None where unknown."""

    def __init__(self, rank: int | None, reason: str) -> None:
        self.rank, self.reason = rank, reason
        who = "a rank" if rank is None else f"rank {rank}"
        super().__init__(f"{who} of the tensor-parallel group is lost: {reason}")

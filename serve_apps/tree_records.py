"""A tree of the HTTP layer: its nodes, and the backend's nodes that hold their KV."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dendrite.errors import InvalidArgument
from dendrite.search.backend import Backend, Branch, NodeRef
from serve_apps.errors import node_released
from serve_apps.events import EventLog
from serve_apps.ledger import Ledger


@dataclass(frozen=True, slots=True)
class KvAccount:
    """Whom the KV of a tree's nodes is counted for, and how many bytes a token of it takes."""

    ledger: Ledger
    owner: str
    bytes_per_token: int

    def hold(self, kv_bytes: int) -> None:
        """Take so much more.

        Raises:
            HttpError: 429; nothing was taken.
        """
        self.ledger.hold(self.owner, kv_bytes=kv_bytes)

    def free(self, kv_bytes: int) -> None:
        """Give so much back."""
        self.ledger.free(self.owner, kv_bytes=kv_bytes)


@dataclass(slots=True)
class Record:
    """A node. It continues `parent` after `at` of the parent's tokens.

    Its own tokens lie in backend nodes, each below the one before: `parts` pairs each with the number of own tokens at
    its end. `cuts` holds, by that number, backend nodes made to branch from elsewhere, which hold copies of the tokens
    after the part before. `kv_bytes` is what is on the account for all of them.
    """

    id: int
    parent: Record | None
    at: int
    account: KvAccount
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    parts: list[tuple[NodeRef, int]] = field(default_factory=list)
    cuts: dict[int, NodeRef] = field(default_factory=dict)
    kv_bytes: int = 0
    value: float | None = None
    finish_reason: str | None = None
    document: tuple[str, int] | None = None
    """The grammar that the last tokens were held to, by its digest, and where on the path its document began."""
    children: list[int] = field(default_factory=list)
    job: asyncio.Task[None] | None = None
    """What is generating here now."""
    released: bool = False
    gone: bool = False
    """Released, as all below it is: nothing may be made here any more."""
    cutting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def refs(self) -> list[NodeRef]:
        """The backend's nodes, all of them this node's to release."""
        return [*(ref for ref, _ in self.parts), *self.cuts.values()]

    @property
    def path_length(self) -> int:
        """Tokens from the beginning of the prompt to the end of this node."""
        return self.path_length_to(len(self.tokens))

    def path_length_to(self, at: int) -> int:
        """Tokens from the beginning of the prompt to after `at` own ones."""
        length, place = at, self
        while place.parent is not None:
            length, place = length + place.at, place.parent
        return length

    def document_tokens(self, digest: str) -> int:
        """Tokens at the end of the path of a document under that grammar, which goes on; 0 where one must begin."""
        place, end = self, len(self.tokens)
        while not end and place.parent is not None:
            place, end = place.parent, place.at
        if place.document is None or place.document[0] != digest:
            return 0
        ended = end == len(place.tokens) and place.finish_reason == "stop"
        return 0 if ended else max(0, place.path_length_to(end) - place.document[1])

    def take(self, branch: Branch) -> None:
        """Append a span, which continues the last part; its backend node is this node's from now on."""
        self.note(branch.tokens, branch.logprobs)
        self.parts.append((branch.node, len(self.tokens)))
        self.value = branch.value

    def note(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Append tokens that no part holds yet."""
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        self.value = None

    async def tip(self, backend: Backend) -> NodeRef:
        """The backend's node that the next token of this node continues."""
        length = len(self.tokens)
        ref = await locate(backend, self, length)
        if length and (not self.parts or self.parts[-1][1] < length):
            self.parts.append((self.cuts.pop(length), length))
        return ref


async def locate(backend: Backend, record: Record, at: int) -> NodeRef:
    """The backend's node that ends after `at` own tokens of `record`; made, and kept there, if there is none yet.

    Raises:
        InvalidArgument: the root's prompt cannot be left out as a whole.
        HttpError: 429, the account has no room for a copy; 410, the node was given up meanwhile.
    """
    while at == 0:
        if record.parent is None:
            raise InvalidArgument("at", at, "a branch of the root keeps at least one token of the prompt")
        record, at = record.parent, record.at
    ends = [end for _, end in record.parts]
    index = bisect_right(ends, at - 1)
    if index < len(ends) and ends[index] == at:
        return record.parts[index][0]
    async with record.cutting:
        if record.gone:
            raise node_released(record.id)
        if at not in record.cuts:
            await _cut(backend, record, ends[index - 1] if index else 0, at)
        return record.cuts[at]


async def _cut(backend: Backend, record: Record, start: int, at: int) -> None:
    """Write the tokens `start` .. `at` of a node again, after the part that ends at `start`."""
    # No part holds the tokens up to the end of the node if one ends there now, and they are on the account already.
    kv_bytes = (at - start) * record.account.bytes_per_token if at < len(record.tokens) else 0
    record.account.hold(kv_bytes)
    try:
        made = await _written(backend, record, start, at)
    except BaseException:
        record.account.free(kv_bytes)
        raise
    if record.gone:
        record.account.free(kv_bytes)
        await backend.release(made)
        raise node_released(record.id)
    record.kv_bytes += kv_bytes
    record.cuts[at] = made


async def _written(backend: Backend, record: Record, start: int, at: int) -> NodeRef:
    if record.parent is None and start == 0:
        return await backend.prefill(record.tokens[:at])
    before = await locate(backend, record, start)
    [branch] = await backend.append(before, [record.tokens[start:at]])
    return branch.node


@dataclass(slots=True)
class TreeRecord:
    """A tree. `expires` is when its lease runs out, by the host's clock; `generated` counts tokens."""

    id: str
    account: KvAccount
    expires: float
    nodes: dict[int, Record] = field(default_factory=dict)
    streams: dict[str, EventLog] = field(default_factory=dict)
    generated: int = 0
    next_node: int = 0

    @property
    def owner(self) -> str:
        """The id of the key whose tree it is."""
        return self.account.owner

    def new_node(self, parent: Record | None, at: int) -> Record:
        """A node without tokens."""
        record = Record(self.next_node, parent, at, self.account)
        self.next_node += 1
        self.nodes[record.id] = record
        if parent is not None:
            parent.children.append(record.id)
        return record

    def below(self, record: Record) -> Iterator[Record]:
        """A node and all below it."""
        waiting = [record]
        while waiting:
            place = waiting.pop()
            yield place
            waiting.extend(self.nodes[child] for child in place.children)

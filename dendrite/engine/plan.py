"""What one step runs, and which rows of its batch are whose."""

from __future__ import annotations

from dataclasses import dataclass, field

from dendrite.engine.generation import Compute, Generation
from dendrite.kv.node import Node
from dendrite.kv.pages import TailCopy


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of `job.node` to compute, from its own token `start` on."""

    job: Compute
    start: int
    count: int

    @property
    def last(self) -> bool:
        """Whether the job is complete after this chunk."""
        return self.start + self.count == len(self.job.node.tokens)


@dataclass(slots=True, eq=False)
class Retip:
    """A token whose KV is written but whose hidden state is gone; it is run once more for all that wait for it.

    It is the last of `length` tokens on the path, and one of `node`'s own.
    """

    node: Node
    length: int
    waiting: list[Generation] = field(default_factory=list)

    @property
    def reader(self) -> Node:
        """A node whose page table holds the token: `node` itself may have lost its tail page to a fork."""
        return self.waiting[0].node


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's work, with its pages reserved.

    `copies` must be carried out before the step's keys and values are written. Each of `decodes` has slots for `burst`
    tokens.
    """

    decodes: list[Generation]
    chunks: list[Chunk]
    retips: list[Retip]
    copies: list[TailCopy]
    burst: int = 1

    @property
    def given(self) -> Plan:
        """The part whose tokens are given, not sampled; its copies are left out."""
        return Plan([], self.chunks, self.retips, [])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to run."""
        return not (self.decodes or self.chunks or self.retips)


def last_rows(plan: Plan) -> list[int]:
    """Row of the last token of each sequence of the batch, in order: decodes, retips, chunks."""
    singles = len(plan.decodes) + len(plan.retips)
    rows, end = list(range(singles)), singles
    for chunk in plan.chunks:
        end += chunk.count
        rows.append(end - 1)
    return rows


def chunk_rows(plan: Plan, chunk: Chunk) -> range:
    """Rows of the batch that hold a chunk's tokens."""
    start = len(plan.decodes) + len(plan.retips)
    for other in plan.chunks:
        if other is chunk:
            return range(start, start + chunk.count)
        start += other.count
    raise ValueError("the chunk is not part of the plan")

"""What the leader of a group tells its followers: arrays of int64, the first number of which is the kind."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.kv.pages import TailCopy

Numbers = npt.NDArray[np.int64]


class Kind(IntEnum):
    """What a command asks for, with the numbers that follow.

    JOIN [port]: meet the other ranks at the leader's store. ALLOCATE [pages]: make the KV storage.
    COPY [source, target, filled]...: copy tail pages. FORWARD: run a batch, see `pack_batch`.
    READ [slots] and WRITE [slots]: take part in `gather_tokens` and `scatter_tokens`.
    """

    JOIN = 0
    ALLOCATE = 1
    COPY = 2
    FORWARD = 3
    READ = 4
    WRITE = 5


class Reply(IntEnum):
    """What a follower says: READY, then [pages] that it has room for, or FAILED, then why, as text."""

    READY = 0
    FAILED = 1


def pack(kind: Kind, numbers: Sequence[int]) -> bytes:
    """A command as bytes."""
    return np.array([kind, *numbers], dtype=np.int64).tobytes()


def unpack(frame: bytes) -> tuple[Kind, Numbers]:
    """Kind and numbers of a command."""
    numbers = np.frombuffer(frame, dtype=np.int64)
    return Kind(int(numbers[0])), numbers[1:]


def pack_reply(kind: Reply, content: int | str) -> bytes:
    """A reply as bytes: READY with a count of pages, FAILED with a text."""
    return bytes([kind]) + str(content).encode()


def read_reply(frame: bytes | None) -> tuple[Reply, int | str]:
    """Kind and content of a reply; silence is a failure too."""
    if not frame:
        return Reply.FAILED, "its process has ended"
    kind, text = Reply(frame[0]), frame[1:].decode()
    return kind, int(text) if kind is Reply.READY else text


def pack_copies(copies: Sequence[TailCopy]) -> bytes:
    """COPY as bytes."""
    return pack(Kind.COPY, list(chain.from_iterable((copy.src_page, copy.dst_page, copy.filled) for copy in copies)))


def unpack_copies(numbers: Numbers) -> list[TailCopy]:
    """What `pack_copies` packed."""
    return [TailCopy(*row) for row in numbers.reshape(-1, 3).tolist()]


def pack_batch(batch: ForwardBatch) -> bytes:
    """FORWARD as bytes, of a batch on the host.

    With T tokens, B sequences, P pages a row and S shared runs: [T, B, P, S], then tokens [T], positions [T], slots
    [T], query_start [B + 1], context [B], page_table [B, P], shared_pages [S, 3].
    """
    tokens, (sequences, width) = batch.tokens.shape[0], batch.page_table.shape
    sizes = np.array([Kind.FORWARD, tokens, sequences, width, len(batch.shared_pages)], dtype=np.int64)
    parts = (
        sizes,
        batch.tokens.numpy(),
        batch.positions.numpy(),
        batch.slots.numpy(),
        np.array(batch.query_start, dtype=np.int64),
        np.array(batch.context, dtype=np.int64),
        batch.page_table.numpy().ravel(),
        np.array(batch.shared_pages, dtype=np.int64).ravel(),
    )
    return np.concatenate(parts).tobytes()


def unpack_batch(numbers: Numbers) -> ForwardBatch:
    """What `pack_batch` packed, on the host."""
    count, sequences, width, runs = numbers[:4].tolist()
    sizes = (count, count, count, sequences + 1, sequences, sequences * width, 3 * runs)
    tokens, positions, slots, starts, context, table, shared = np.split(numbers[4:].copy(), np.cumsum(sizes)[:-1])
    return ForwardBatch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        query_start=starts.tolist(),
        context=context.tolist(),
        page_table=torch.from_numpy(table).view(sequences, width),
        shared_pages=[(first, end, pages) for first, end, pages in shared.reshape(-1, 3).tolist()],
    )


def on_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """A batch on the host, moved to `device` in stream order."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return ForwardBatch(
        tokens=moved(batch.tokens),
        positions=moved(batch.positions),
        slots=moved(batch.slots),
        query_start=batch.query_start,
        context=batch.context,
        page_table=moved(batch.page_table),
        shared_pages=batch.shared_pages,
    )

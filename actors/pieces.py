"""Tokens of running generations on their way to whoever reads them: those of many streams in one message.

A worker puts pieces into the box of their reader, and the reader asks for what is in it, again and again, for as long
as any of its streams is under way. What comes while it is busy waits, so that more streams make larger messages, not
more of them. A piece may be lost, or late: the reply to the call that generates has all tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from actors.fleet import Fleet
from actors.refs import ClusterNode, worker_name
from actors.rpc import call
from dendrite.errors import ClusterError
from dendrite.search.backend import TopLogprobs

_WAIT_S = 2.0
"""How long a reader waits at an empty box before it asks again."""


class Piece(NamedTuple):
    """What a call has generated since its last piece: tokens from number `start` on of the new `node`."""

    call: int
    node: ClusterNode
    start: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...]


class _Box:
    """Pieces for one reader; it is kept while there are streams that fill it, or the reader waits at it."""

    def __init__(self) -> None:
        self.users = 0
        self.pieces: list[Piece] = []
        self.some = asyncio.Event()


class PieceBoxes:
    """The worker's side: a box for each reader."""

    def __init__(self) -> None:
        self._boxes: dict[int, _Box] = {}

    @contextlib.contextmanager
    def open(self, reader: int) -> Iterator[Callable[[Piece], None]]:
        """Keep a reader's box for a stream; gives what puts a piece into it."""
        with self._used(reader) as box:

            def put(piece: Piece) -> None:
                box.pieces.append(piece)
                box.some.set()

            yield put

    async def take(self, reader: int) -> list[Piece]:
        """All pieces that are there for a reader; waits a while for some, and is empty if none comes."""
        with self._used(reader) as box:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_S):
                    await box.some.wait()
            pieces, box.pieces = box.pieces, []
            box.some.clear()
            return pieces

    @contextlib.contextmanager
    def _used(self, reader: int) -> Iterator[_Box]:
        box = self._boxes.setdefault(reader, _Box())
        box.users += 1
        try:
            yield box
        finally:
            box.users -= 1
            if not box.users:
                del self._boxes[reader]


_Key = tuple[asyncio.AbstractEventLoop, int]


class PieceReader:
    """The client's side: hands pieces to the calls that they are of."""

    def __init__(self, fleet: Fleet, id: int) -> None:
        """Make an idle reader. `id` is its own among those of all processes."""
        self.id = id
        self._fleet = fleet
        self._followed: dict[_Key, dict[int, Callable[[Piece], None]]] = {}
        self._reading: dict[_Key, asyncio.Task[None]] = {}

    @contextlib.contextmanager
    def follow(self, worker: int, call_id: int, tell: Callable[[Piece], None]) -> Iterator[None]:
        """Have `tell` called with each piece of a call to a worker."""
        key = asyncio.get_running_loop(), worker
        calls = self._followed.setdefault(key, {})
        calls[call_id] = tell
        if key not in self._reading:
            self._reading[key] = key[0].create_task(self._read(key))
        try:
            yield
        finally:
            del calls[call_id]
            if not calls:
                del self._followed[key]

    async def _read(self, key: _Key) -> None:
        _, worker = key
        try:
            while key in self._followed:
                reply = self._fleet.handle(worker).take_pieces.remote(self.id)
                pieces = await call(self._fleet.watch(worker, reply), worker_name(worker))
                calls = self._followed.get(key, {})  # of now: others may have begun meanwhile
                for piece in pieces:
                    if piece.call in calls:
                        calls[piece.call](piece)
        except ClusterError:
            pass  # the worker is lost, as the calls themselves are about to learn
        finally:
            del self._reading[key]

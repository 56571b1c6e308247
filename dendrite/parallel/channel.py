"""Messages between the ranks of a group: bytes over TCP, one frame each, between processes that share a secret."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from dendrite.errors import ClusterError

HOST = "127.0.0.1"
"""All ranks of a group are on one machine, and no other one can reach them."""
_KEY_BYTES = 32
_HEADER = struct.Struct("<Q")
_MAX_FRAME = 1 << 32
_POLL_S = 0.2
_HANDSHAKE_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """A follower's place in a group: its rank, the group's size, and with what port and secret to call the leader."""

    rank: int
    size: int
    port: int
    key: bytes


class Channel:
    """One end of a connection. `send` and `receive` may be used by a thread each."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection

    @classmethod
    def to_leader(cls, place: Place, timeout_s: float) -> Channel:
        """Call the leader and take one's place.

        Raises:
            OSError: nobody answers.
        """
        channel = cls(socket.create_connection((HOST, place.port), timeout=timeout_s))
        channel._socket.sendall(place.key + _HEADER.pack(place.rank))
        return channel

    def send(self, frame: bytes) -> None:
        """Send a frame.

        Raises:
            OSError: the other end is gone.
        """
        self._socket.sendall(_HEADER.pack(len(frame)) + frame)

    def receive(self) -> bytes | None:
        """Wait for a frame; None when the other end has hung up or died."""
        try:
            header = self._exactly(_HEADER.size)
            if header is None:
                return None
            (length,) = _HEADER.unpack(header)
            return self._exactly(length) if length <= _MAX_FRAME else None
        except OSError:
            return None

    def close(self) -> None:
        """Hang up, which ends a `receive` that waits, on both ends. Idempotent."""
        with contextlib.suppress(OSError):  # the other end has done it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray(count)
        view, filled = memoryview(parts), 0
        while filled < count:
            read = self._socket.recv_into(view[filled:])
            if not read:
                return None
            filled += read
        return bytes(parts)


class Listener:
    """Where the followers of one group call in. A context manager: closed at its end."""

    def __init__(self) -> None:
        self._server = socket.create_server((HOST, 0))
        self._server.settimeout(_POLL_S)
        self._key = secrets.token_bytes(_KEY_BYTES)

    def place(self, rank: int, size: int) -> Place:
        """The place that a follower is to be told."""
        return Place(rank, size, self._server.getsockname()[1], self._key)

    def accept(self, size: int, timeout_s: float, check: Callable[[], None]) -> list[Channel]:
        """Wait for ranks 1 to `size - 1`, asking `check` (which raises if one will never come) all the while.

        Raises:
            ClusterError: one has not called in time.
        """
        deadline = time.monotonic() + timeout_s
        found: dict[int, Channel] = {}
        while len(found) < size - 1:
            check()
            if time.monotonic() > deadline:
                missing = sorted(set(range(1, size)) - set(found))
                raise ClusterError(f"ranks {missing} of the tensor-parallel group did not call within {timeout_s:g} s")
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            rank = self._greet(connection)
            if rank is not None and 1 <= rank < size and rank not in found:
                found[rank] = Channel(connection)
            else:
                connection.close()
        return [found[rank] for rank in range(1, size)]

    def _greet(self, connection: socket.socket) -> int | None:
        """The caller's rank; None for one that does not know the secret."""
        connection.settimeout(_HANDSHAKE_S)
        greeting = b""
        try:
            while len(greeting) < _KEY_BYTES + _HEADER.size:
                part = connection.recv(_KEY_BYTES + _HEADER.size - len(greeting))
                if not part:
                    return None
                greeting += part
        except OSError:
            return None
        if not hmac.compare_digest(greeting[:_KEY_BYTES], self._key):
            return None
        rank: int = _HEADER.unpack(greeting[_KEY_BYTES:])[0]
        return rank

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

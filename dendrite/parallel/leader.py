"""Rank 0's side of a tensor-parallel group: it forms the group, and has all ranks do what it does."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Protocol

import torch

from dendrite.errors import ClusterError, InvalidArgument, RankLost
from dendrite.interrupts import interrupts_held
from dendrite.parallel.channel import Channel, Listener, Place
from dendrite.parallel.commands import Kind, Reply, pack, read_reply
from dendrite.parallel.group import Group, open_store
from dendrite.parallel.sharding import Shard

_START_TIMEOUT_S = 300.0
_BLAME_WITHIN_S = 2.0
"""How long after a failed step to wait for news of which rank it was."""


class Followers(Protocol):
    """The processes of ranks 1 and up."""

    def start(self, places: Sequence[Place]) -> None:
        """Start them; each runs `dendrite.parallel.follower.follow` with its place."""
        ...

    def check(self) -> None:
        """Raise a `DendriteError` if one has ended, or will never start."""
        ...

    def lost(self, reason: RankLost) -> None:
        """The group has ended other than by `Leader.close`. Called once, on any thread, before a step can say so."""
        ...

    def end(self) -> None:
        """Make sure that they end: the leader has hung up. Idempotent."""
        ...


class Leader:
    """The group as rank 0 sees it.

    A group lives and dies as a whole: when a rank is lost, or a step fails on any, all later steps raise `RankLost`.
    """

    def __init__(self, size: int, followers: Followers, device: torch.device) -> None:
        """Start the followers and meet them.

        Args:
            size: ranks, this one included.
            followers: the others.
            device: what this rank computes on.

        Raises:
            InvalidArgument: there is no such size.
            ClusterError, RankLost: a follower did not start.
        """
        if size < 2:
            raise InvalidArgument("tensor_parallel", size, "a group has at least 2 ranks")
        shard = Shard(0, size)
        self._device, self._followers = device, followers
        self._channels: list[Channel] = []
        self._ended: ClusterError | None = None
        self._news, self._lock = threading.Event(), threading.Lock()
        self._end = weakref.finalize(self, _hang_up, self._channels, followers)
        try:
            with Listener() as listener:
                followers.start([listener.place(rank, size) for rank in range(1, size)])
                self._channels += listener.accept(size, _START_TIMEOUT_S, followers.check)
            store = open_store()
            self._tell(pack(Kind.JOIN, [store.port]))
            self.group = Group(shard, store, device)
        except BaseException as error:
            self._end()
            if isinstance(error, OSError | RuntimeError) and not isinstance(error, ClusterError):
                raise RankLost(None, f"the ranks did not find one another: {error}") from error
            raise

    @property
    def size(self) -> int:
        """Ranks, this one included."""
        return len(self._channels) + 1

    def allocate(self, pages: int) -> int:
        """Wait for all ranks to load their part of the model, and have each make a KV storage of its own.

        Args:
            pages: that this rank has room for.

        Returns:
            The pages that each has room for.

        Raises:
            RankLost: one could not load its part.
        """
        counts = [pages]
        for rank, channel in enumerate(self._channels, start=1):
            kind, content = read_reply(channel.receive())
            if kind is not Reply.READY:
                self.close()
                raise RankLost(rank, str(content))
            counts.append(int(content))
        self._tell(pack(Kind.ALLOCATE, [min(counts)]))
        for rank, channel in enumerate(self._channels, start=1):
            arguments = weakref.ref(self), rank, channel
            threading.Thread(target=_watch, args=arguments, name=f"rank-{rank}", daemon=True).start()
        return min(counts)

    @contextmanager
    def lockstep(self, command: bytes) -> Iterator[None]:
        """Send a command to the followers; the body does the same here. Ctrl-C takes effect after it.

        At the end all ranks were there for all of the body's sums.

        Raises:
            RankLost: they were not, or the body failed; the group has ended.
            ClusterError: the group had been closed.
        """
        with interrupts_held():
            self.check()
            try:
                self._tell(command)
                yield
                if self._device.type == "cuda":  # what hangs on a lost rank is aborted, and its results are worthless
                    torch.cuda.current_stream(self._device).synchronize()
            except BaseException as error:
                self._fail(error)
                raise self._reason() from error
            self.check()

    def check(self) -> None:
        """Raise what has ended the group, if something has."""
        if self._ended is not None:
            raise self._reason()

    def close(self) -> None:
        """End the followers. Idempotent."""
        self._finish(ClusterError("the tensor-parallel group has been closed"))
        self._end()

    def lose(self, rank: int, reason: str) -> None:
        """A rank has hung up or failed: end the group."""
        self._finish(RankLost(rank, reason))

    def _tell(self, command: bytes) -> None:
        for rank, channel in enumerate(self._channels, start=1):
            try:
                channel.send(command)
            except OSError as error:
                raise RankLost(rank, str(error)) from error

    def _fail(self, error: BaseException) -> None:
        """End the group after a step that did not succeed here."""
        if isinstance(error, RankLost):
            self._finish(error)
        elif isinstance(error, RuntimeError):  # a sum failed, perhaps for a rank whose end is known in a moment
            self._news.wait(_BLAME_WITHIN_S)
        self._finish(RankLost(None, f"a step failed: {type(error).__name__}: {error}"))
        self._end()

    def _finish(self, reason: ClusterError) -> None:
        """End the group for that reason, if it has not ended for another one."""
        with self._lock:
            if self._ended is not None:
                return
            if isinstance(reason, RankLost):  # first: what ends this process on it must not be preceded by an answer
                self._followers.lost(reason)
            self._ended = reason
        self.group.abort()
        self._news.set()

    def _reason(self) -> ClusterError:
        assert self._ended is not None
        return copy(self._ended)  # each raise has a traceback of its own


def _watch(leader: weakref.ref[Leader], rank: int, channel: Channel) -> None:
    """Wait for a follower's last words, or for its silence. Does not keep the leader alive."""
    kind, content = read_reply(channel.receive())
    found = leader()
    if found is not None:
        found.lose(rank, str(content) if kind is not Reply.READY else "it has lost step with the others")


def _hang_up(channels: list[Channel], followers: Followers) -> None:
    for channel in channels:
        channel.close()
    followers.end()

"""Frames between processes, and who may send them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import ClusterError, RankLost
from dendrite.parallel.channel import HOST, Channel, Listener


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Channel, Channel]]:
    with Listener() as listener:
        follower = Channel.to_leader(listener.place(1, 2), 5.0)
        (leader,) = listener.accept(2, 5.0, lambda: None)
    yield leader, follower
    leader.close()
    follower.close()


@given(frames=st.lists(st.binary(max_size=5_000), max_size=5))
def test_frames_arrive_whole_and_in_order(ends: tuple[Channel, Channel], frames: list[bytes]) -> None:
    for here, there in (ends, ends[::-1]):
        for frame in frames:
            here.send(frame)
        assert [there.receive() for _ in frames] == frames


def test_a_large_frame_arrives(ends: tuple[Channel, Channel]) -> None:
    frame = bytes(range(256)) * 100_000
    sender = threading.Thread(target=ends[0].send, args=(frame,))
    sender.start()
    assert ends[1].receive() == frame
    sender.join()


@pytest.mark.parametrize("closer", [0, 1])
def test_hanging_up_ends_what_waits_on_both_ends(closer: int) -> None:
    with Listener() as listener:
        follower = Channel.to_leader(listener.place(1, 2), 5.0)
        (leader,) = listener.accept(2, 5.0, lambda: None)
    found: list[bytes | None] = []
    threads = [threading.Thread(target=lambda end=end: found.append(end.receive())) for end in (leader, follower)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        (leader, follower)[closer].close()
    for thread in threads:
        thread.join(5.0)
    assert found == [None, None]
    (leader, follower)[1 - closer].close()


def test_callers_are_sorted_by_rank_and_strangers_are_turned_away() -> None:
    with Listener() as listener:
        place = listener.place(1, 3)
        strangers = [
            Channel.to_leader(replace(place, key=bytes(32)), 5.0),
            Channel.to_leader(replace(place, rank=7), 5.0),
        ]
        socket.create_connection((HOST, place.port)).close()
        followers = [Channel.to_leader(listener.place(rank, 3), 5.0) for rank in (2, 1)]
        second_of_a_rank = Channel.to_leader(listener.place(2, 3), 5.0)
        channels = listener.accept(3, 5.0, lambda: None)
    for rank, channel in enumerate(channels, start=1):
        channel.send(str(rank).encode())
    assert [follower.receive() for follower in followers] == [b"2", b"1"]
    assert [stranger.receive() for stranger in strangers] == [None, None]
    for channel in (*channels, *followers, *strangers, second_of_a_rank):
        channel.close()


def test_ranks_that_never_call_are_named() -> None:
    with Listener() as listener, pytest.raises(ClusterError, match=r"ranks \[1, 2\]"):
        listener.accept(3, 0.0, lambda: None)


def test_a_follower_known_to_be_dead_is_not_waited_for() -> None:
    def check() -> None:
        raise RankLost(1, "its process has ended")

    with Listener() as listener, pytest.raises(RankLost):
        listener.accept(2, 60.0, check)

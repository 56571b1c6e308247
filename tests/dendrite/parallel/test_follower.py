"""A follower whose leader says what it should not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from dendrite.config import EngineConfig
from dendrite.errors import ClusterError
from dendrite.parallel.channel import Channel, Listener
from dendrite.parallel.commands import Kind, Reply, pack, read_reply
from dendrite.parallel.follower import follow
from dendrite.parallel.group import Group, open_store
from dendrite.parallel.sharding import Shard
from tests.dendrite.parallel.threads import CPU
from tests.tiny_model import write_tiny_model

CONFIG = EngineConfig(kv_tokens=512, device="cpu", tensor_parallel=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@contextmanager
def follower(folder: Path) -> Iterator[tuple[Channel, Future[None]]]:
    """The leader's end of its connection, and how it ends."""
    with ThreadPoolExecutor(1) as pool, Listener() as listener:
        ended = pool.submit(follow, listener.place(1, 2), folder, CONFIG, CPU)
        (channel,) = listener.accept(2, 10.0, lambda: None)
        yield channel, ended
        channel.close()


def test_a_follower_ends_without_a_word_when_its_leader_hangs_up(folder: Path) -> None:
    with follower(folder) as (channel, ended):
        channel.close()
        assert ended.result(10.0) is None


def test_a_follower_that_is_told_to_work_too_early_says_so_and_ends(folder: Path) -> None:
    with follower(folder) as (channel, ended):
        channel.send(pack(Kind.COPY, []))
        kind, reason = read_reply(channel.receive())
        assert kind is Reply.FAILED
        assert "waits for JOIN was told to COPY" in str(reason)
        with pytest.raises(ClusterError, match="COPY"):
            ended.result(10.0)


def test_a_follower_has_the_pages_that_its_settings_ask_for_and_is_joined_once(folder: Path) -> None:
    with follower(folder) as (channel, ended):
        store = open_store()
        channel.send(pack(Kind.JOIN, [store.port]))
        group = Group(Shard(0, 2), store, CPU)
        assert read_reply(channel.receive()) == (Reply.READY, 512 // 16 + 1)
        channel.send(pack(Kind.ALLOCATE, [7]))
        channel.send(pack(Kind.JOIN, [store.port]))
        assert read_reply(channel.receive())[0] is Reply.FAILED
        with pytest.raises(ClusterError, match="at work was told to JOIN"):
            ended.result(10.0)
        group.abort()

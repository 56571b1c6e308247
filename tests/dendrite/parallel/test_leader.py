"""A group that loses a rank: who hears of it, how soon, and what is left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import ClusterError, InvalidArgument, RankLost
from dendrite.model.decoder import Decoder
from dendrite.parallel.channel import Channel, Place
from dendrite.parallel.commands import Kind, Reply, pack, pack_reply, unpack
from dendrite.parallel.group import Group, join_store
from dendrite.parallel.leader import Leader
from dendrite.parallel.sharding import Shard
from tests.dendrite.parallel.threads import CPU, ThreadFollowers
from tests.tiny_model import write_tiny_model

CONFIG = EngineConfig(kv_tokens=512, device="cpu", tensor_parallel=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


class ByHand:
    """One follower whose every word the test says."""

    def __init__(self) -> None:
        self.losses: list[RankLost] = []
        self.channel: Channel
        self.group: Group
        self._thread = threading.Thread(target=lambda: None)

    def start(self, places: Sequence[Place]) -> None:
        self._thread = threading.Thread(target=self._join, args=(places[0],), daemon=True)
        self._thread.start()

    def check(self) -> None: ...

    def lost(self, reason: RankLost) -> None:
        self.losses.append(reason)

    def end(self) -> None:
        self._thread.join(5.0)
        self.channel.close()

    def _join(self, place: Place) -> None:
        self.channel = Channel.to_leader(place, 5.0)
        frame = self.channel.receive()
        assert frame is not None
        _, port = unpack(frame)
        self.group = Group(Shard(1, 2), join_store(int(port[0])), CPU)


@pytest.fixture
def by_hand() -> Iterator[tuple[Leader, ByHand]]:
    follower = ByHand()
    leader = Leader(2, follower, CPU)
    yield leader, follower
    leader.close()


def ready(leader: Leader, follower: ByHand, pages: int = 9) -> int:
    follower.channel.send(pack_reply(Reply.READY, pages))
    return leader.allocate(20)


def test_the_group_has_the_pages_that_its_smallest_rank_has_room_for(
    by_hand: tuple[Leader, ByHand],
) -> None:
    leader, follower = by_hand
    assert ready(leader, follower, 9) == 9
    frame = follower.channel.receive()
    assert frame is not None
    kind, numbers = unpack(frame)
    assert (kind, numbers.tolist()) == (Kind.ALLOCATE, [9])


def test_a_rank_that_cannot_load_its_part_says_why(by_hand: tuple[Leader, ByHand]) -> None:
    leader, follower = by_hand
    follower.channel.send(pack_reply(Reply.FAILED, "no memory"))
    with pytest.raises(RankLost, match=r"rank 1 .*no memory"):
        leader.allocate(20)


def test_a_rank_that_hangs_up_while_the_group_is_idle_is_reported_once(
    by_hand: tuple[Leader, ByHand],
) -> None:
    leader, follower = by_hand
    ready(leader, follower)
    follower.channel.close()
    leader._news.wait(5.0)
    for _ in range(2):
        with pytest.raises(RankLost, match="rank 1"), leader.lockstep(pack(Kind.COPY, [])):
            pytest.fail("a step without all ranks")
    assert [loss.rank for loss in follower.losses] == [1]


def test_no_step_says_that_a_rank_is_lost_before_the_followers_have_heard_of_it(
    by_hand: tuple[Leader, ByHand], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = by_hand
    ready(leader, follower)
    hearing, heard, failed = threading.Event(), threading.Event(), threading.Event()

    def lost(reason: RankLost) -> None:
        hearing.set()
        heard.wait(10)

    def step() -> None:
        with pytest.raises(RankLost), leader.lockstep(pack(Kind.COPY, [])):
            raise RuntimeError("the sum has failed")
        failed.set()

    monkeypatch.setattr(follower, "lost", lost)
    follower.channel.close()
    assert hearing.wait(5)
    threading.Thread(target=step, daemon=True).start()
    assert not failed.wait(0.5)
    heard.set()
    assert failed.wait(5)


def test_a_rank_that_dies_in_the_middle_of_a_sum_fails_the_step(
    by_hand: tuple[Leader, ByHand],
) -> None:
    leader, follower = by_hand
    ready(leader, follower)

    def die() -> None:
        follower.channel.close()
        follower.group.abort()

    threading.Timer(0.2, die).start()
    with pytest.raises(RankLost, match="rank 1"), leader.lockstep(pack(Kind.COPY, [])):
        leader.group.all_reduce(torch.ones(3))
    assert [loss.rank for loss in follower.losses] == [1]


def test_a_step_that_fails_here_ends_the_group(by_hand: tuple[Leader, ByHand]) -> None:
    leader, follower = by_hand
    ready(leader, follower)
    with pytest.raises(RankLost, match="ValueError: nonsense"), leader.lockstep(pack(Kind.COPY, [])):
        raise ValueError("nonsense")
    with pytest.raises(RankLost, match="nonsense"):
        leader.check()


def test_a_closed_group_says_so(by_hand: tuple[Leader, ByHand]) -> None:
    leader, follower = by_hand
    ready(leader, follower)
    for _ in range(2):
        leader.close()
    with pytest.raises(ClusterError, match="has been closed"), leader.lockstep(b""):
        pytest.fail("a step of a closed group")
    assert not follower.losses


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least 2"):
        Leader(1, ByHand(), CPU)


def test_followers_go_when_the_engine_is_forgotten(folder: Path) -> None:
    followers = ThreadFollowers(folder, CONFIG)
    engine = Engine.from_pretrained(folder, config=CONFIG, followers=followers)
    engine.prefill("abc").release()
    del engine
    gc.collect()
    for thread in followers._threads:
        thread.join(10.0)
        assert not thread.is_alive()


def test_a_follower_that_cannot_load_the_model_fails_the_engine_with_its_words(folder: Path, tmp_path: Path) -> None:
    broken = write_tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(RankLost, match="CorruptFile"):
        Engine.from_pretrained(folder, config=CONFIG, followers=ThreadFollowers(broken, CONFIG))


def test_an_engine_refuses_ranks_that_it_does_not_lead(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="tensor_parallel"):
        Engine(Decoder.from_folder(folder), config=CONFIG)
    with pytest.raises(InvalidArgument, match="followers"):
        Engine.from_pretrained(folder, device="cpu", followers=ThreadFollowers(folder, CONFIG))

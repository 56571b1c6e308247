"""Each call is made once and answered once, however messages fare; those of one moment go together."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from actors import exchange
from actors.exchange import Exchange, Line, Piece
from actors.refs import ClusterNode
from actors.rpc import ActorLost, Handle, call
from dendrite.errors import ClusterError, UnknownNode

NODE = ClusterNode(0, 1, 2)


class Worker:
    """Lends a few methods; its messages can be held up and lost."""

    def __init__(self) -> None:
        self.exchange = Exchange("worker 0", {"work": self.work, "tell": self.tell, "fail": self.fail})
        self.made: list[int] = []
        self.messages: list[list[int]] = []
        self.under_way = self.most_under_way = 0
        self.lost: Callable[[int], bool] = lambda message: False

    async def send(self, client: int, message: bytes) -> bytes:
        number = len(self.messages)
        self.messages.append([order.call for order in pickle.loads(message)])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            if self.lost(number):
                raise ActorLost("worker 0", permanent=False)
            return await self.exchange(client, message)
        finally:
            self.under_way -= 1

    async def work(self, number: int, turns: int) -> int:
        self.made.append(number)
        for _ in range(turns):
            await asyncio.sleep(0)
        return 2 * number

    async def tell(self, client: int, call: int, count: int) -> str:
        for start in range(count):
            self.exchange.tell(client, Piece(call, NODE, start, (start,), (-1.0,), ()))
            await asyncio.sleep(0)
        return "told"

    async def fail(self, error: Exception) -> None:
        raise error


turns = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=6)


@given(turns, st.sets(st.integers(0, 12), max_size=4))
def test_every_call_is_made_and_answered_once_or_is_lost(asked: list[list[int]], lost: set[int]) -> None:
    async def run() -> None:
        worker = Worker()
        worker.lost = lost.__contains__
        line = Line(7, worker.send)
        replies: dict[int, asyncio.Future[int]] = {}
        for turn in asked:
            for delay in turn:
                number = len(replies)
                replies[number] = line.call(number, "work", (number, delay))
            await asyncio.sleep(0)
        found = await asyncio.wait_for(asyncio.gather(*replies.values(), return_exceptions=True), 10)
        for number, reply in enumerate(found):
            assert isinstance(reply, ActorLost) if isinstance(reply, Exception) else reply == 2 * number
        assert any(isinstance(reply, ActorLost) for reply in found) <= bool(lost)
        sent = [number for message in worker.messages for number in message]
        assert sent == list(replies)
        assert len(worker.made) == len(set(worker.made))
        assert worker.most_under_way <= 2
        await asyncio.sleep(0.001)
        assert lost or not worker.exchange._boxes

    asyncio.run(run())


async def test_calls_of_one_turn_are_one_message() -> None:
    worker = Worker()
    line = Line(7, worker.send)
    replies = [line.call(number, "work", (number, 3)) for number in range(20)]
    assert await asyncio.gather(*replies) == [2 * number for number in range(20)]
    assert worker.messages[0] == list(range(20))
    assert len(worker.messages) < 4
    assert await line.call(20, "work", (20, 0)) == 40
    assert worker.messages[-1] == [20]


async def test_calls_gather_while_messages_are_slow() -> None:
    worker = Worker()
    line = Line(7, worker.send)
    replies = []
    for number in range(60):
        replies.append(line.call(number, "work", (number, 9)))
        await asyncio.sleep(0)
    assert await asyncio.gather(*replies) == [2 * number for number in range(60)]
    assert len(worker.messages) < 40


async def test_pieces_come_in_order_and_before_the_reply() -> None:
    worker = Worker()
    lines = [Line(id, worker.send) for id in (7, 8)]
    heard: dict[int, list[int]] = {7: [], 8: []}
    replies = [
        line.call(1, "tell", (line.id, 1, 5), lambda piece, id=line.id: heard[id].append(piece.start))  # type: ignore[misc]
        for line in lines
    ]
    assert await asyncio.gather(*replies) == ["told"] * 2
    assert heard == {7: [0, 1, 2, 3, 4], 8: [0, 1, 2, 3, 4]}
    worker.exchange.tell(7, Piece(1, NODE, 5, (5,), (-1.0,), ()))  # nobody is there any more


async def test_errors_keep_their_type_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    line = Line(7, Worker().send)
    with pytest.raises(UnknownNode) as caught:
        await line.call(1, "fail", (UnknownNode(3, 4),))
    assert str(caught.value) == str(UnknownNode(3, 4))
    with pytest.raises(ClusterError, match="worker 0 failed: ValueError: what nobody expected"):
        await line.call(2, "fail", (ValueError("what nobody expected"),))
    assert "fail failed" in caplog.text


async def test_what_cannot_be_sent_fails_alone() -> None:
    line = Line(7, Worker().send)
    fine = line.call(1, "work", (1, 2))
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        line.call(2, "work", (lambda: None, 2))
    assert await fine == 2


async def test_a_lost_message_takes_with_it_what_was_under_way() -> None:
    worker = Worker()
    line = Line(7, worker.send)
    endless = line.call(0, "work", (0, 1 << 30))
    await asyncio.sleep(0.001)
    worker.lost = lambda message: True
    late = line.call(1, "work", (1, 0))
    for reply in (endless, late):
        with pytest.raises(ActorLost):
            await reply
    worker.lost = lambda message: False
    assert await line.call(2, "work", (2, 0)) == 4


async def test_news_of_a_client_that_is_gone_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_KEPT_S", 0.0)
    worker = Worker()
    orders = [exchange.Order(number, "work", pickle.dumps((number, 3 + 9 * number))) for number in range(2)]
    news = pickle.loads(await worker.exchange(7, pickle.dumps(orders)))
    assert [each.call for each in news] == [0]
    await asyncio.sleep(0.01)
    assert not worker.exchange._boxes


class Callee:
    """A worker as an actor."""

    def __init__(self) -> None:
        self.exchange_with = Exchange("worker 0", {"work": self.work, "sleep": self.sleep})
        self.go = asyncio.Event()

    async def exchange(self, client: int, message: bytes) -> bytes:
        return await self.exchange_with(client, message)

    async def work(self, number: int) -> int:
        await self.go.wait()
        return 2 * number

    async def sleep(self) -> None:
        self.go.set()
        await asyncio.Event().wait()


class Caller:
    """An actor whose tasks share a line; the first of them has its message sent."""

    def __init__(self, callee: Handle) -> None:
        self.line = Line(7, lambda client, message: call(callee.exchange.remote(client, message), "worker 0"))

    async def ask(self, id: int, method: str, *arguments: int) -> int:
        return await self.line.call(id, method, arguments)  # type: ignore[no-any-return]


def test_a_task_that_ray_cancels_takes_no_other_s_calls_with_it(ray_here: None) -> None:
    callee = ray.remote(Callee).options(num_cpus=0).remote()
    caller = ray.remote(Caller).options(num_cpus=0).remote(callee)
    first = caller.ask.remote(1, "sleep")
    second = caller.ask.remote(2, "work", 21)
    ray.get(caller.ask.remote(3, "work", 1), timeout=60)
    third = caller.ask.remote(4, "sleep")
    fourth = caller.ask.remote(5, "sleep")
    for doomed in (first, third):
        ray.cancel(doomed)
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(doomed, timeout=60)
    assert ray.get(second, timeout=60) == 42
    assert ray.get(caller.ask.remote(6, "work", 2), timeout=60) == 4
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(fourth, timeout=1.0)
    for actor in (caller, callee):
        ray.kill(actor)

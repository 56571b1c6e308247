"""Places that a client takes from a tree manager in this process: how often it asks, and what stays on record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from actors.fleet import Fleet
from actors.places import Place, Places
from actors.refs import lease_of
from actors.tree_manager import TreeManager
from actors.worker_calls import WorkerCalls
from dendrite.errors import LeaseExpired
from tests.actors.in_process import LocalHandle
from tests.actors.test_tree_manager_in_process import Worker, introduce

WORKERS = 4


class Manager(TreeManager):
    """Counts what it is asked, and answers when it is let."""

    def __init__(self) -> None:
        super().__init__(60.0, workers=WORKERS, epoch=0)
        self.asked: list[int] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def place(self, trees: Sequence[int]) -> list[int]:
        self.asked.append(len(trees))
        await self.answers.wait()
        return await super().place(trees)

    @property
    def chosen(self) -> list[int]:
        """The trees that are to come to each worker."""
        return [self._book._workers[worker].chosen for worker in range(WORKERS)]


class Client(Places):
    def __init__(self, manager: Manager, lease: int) -> None:
        self.manager, self.now = manager, 0.0
        fleet = Fleet([LocalHandle(Worker()) for _ in range(WORKERS)])
        super().__init__(WorkerCalls(LocalHandle(manager), lease, fleet), clock=lambda: self.now)

    async def steadily(self, count: int, per_s: float) -> list[Place]:
        places = []
        for _ in range(count):
            self.now += 1 / per_s
            places.append(await self.take())
        return places


@pytest.fixture
async def client() -> Client:
    manager = Manager()
    for worker in range(WORKERS):
        await introduce(manager, worker, Worker())
    return Client(manager, (await manager.open_lease()).id)


async def test_who_makes_few_trees_asks_for_each(client: Client) -> None:
    await client.steadily(20, per_s=6.0)
    assert client.manager.asked == [1] * 20


async def test_who_makes_many_trees_asks_for_several_at_once_and_has_them_spread(client: Client) -> None:
    places = await client.steadily(1_000, per_s=100.0)
    assert len({place.tree for place in places}) == 1_000
    assert set(Counter(place.worker for place in places).values()) <= {249, 250, 251}
    assert len(client.manager.asked) < 110


async def test_the_number_of_places_ahead_is_bounded_by_the_rate(client: Client) -> None:
    await client.steadily(500, per_s=64.0)
    assert max(client.manager.asked) <= 1 + 64 // 8 + 1


async def test_places_that_are_too_old_are_given_back(client: Client) -> None:
    places = await client.steadily(200, per_s=100.0)
    unused = sum(client.manager.asked) - len(places)
    assert unused > 0
    client.now += 60.0
    await client.take()
    await asyncio.sleep(0)
    assert sum(client.manager.chosen) == len(places) + 1
    for place in places:
        client.give_back(place.tree)
    await asyncio.sleep(0)
    assert sum(client.manager.chosen) == 1


async def test_who_asks_while_places_are_on_their_way_takes_no_more_than_needed(client: Client) -> None:
    await client.steadily(100, per_s=1_000.0)
    client._stock.clear()
    client.manager.asked.clear()
    client.manager.answers.clear()
    asking = [asyncio.create_task(client.take()) for _ in range(5)]
    while len(client.manager.asked) < 5:
        await asyncio.sleep(0)
    client.manager.answers.set()
    await asyncio.gather(*asking)
    assert sorted(client.manager.asked)[:4] == [1] * 4
    assert max(client.manager.asked) > 1


async def test_who_is_cancelled_while_it_asks_leaves_no_place_behind(client: Client) -> None:
    client.manager.answers.clear()
    asking = asyncio.create_task(client.take())
    while not client.manager.asked:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    client.manager.answers.set()
    await asyncio.sleep(0.01)
    assert sum(client.manager.chosen) == 0


async def test_places_end_with_the_lease(client: Client) -> None:
    place = await client.take()
    await client.manager.close_lease(lease_of(place.tree))
    with pytest.raises(LeaseExpired):
        await client.take()

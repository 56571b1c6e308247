"""Both clients against a real server."""

from __future__ import annotations

import socket

import httpx
import pytest

from dendrite.client import AsyncClient, Client, RequestFailed
from tests.serve_apps.serving import PROMPT, Served

TASK = {"kind": "countdown", "numbers": [3, 4, 50], "target": 62}


def test_a_tree_is_grown_and_given_up(served: Served) -> None:
    with Client(served.url) as client:
        with client.tree(PROMPT) as tree:
            kids = tree.fork(tree.root, 3)
            nodes = tree.generate(kids, max_tokens=16, stop="\n", seed=1)
            assert [node.id for node in nodes] == kids
            assert all(node.text and len(node.logprobs) == len(node.tokens) for node in nodes)
            (early,) = tree.fork(kids[0], at=2)
            assert tree.view().nodes[-1].at == 2
            assert tree.score(tree.root, [nodes[0].text])[0] == pytest.approx(nodes[0].logprobs, rel=1e-3, abs=1e-4)
            tree.renew(90.0)
            assert tree.view().expires_in_s > 80.0
            tree.pin(tree.root, 0.2)
            tree.release(early)
            assert len(tree.view().nodes) == 4
        with pytest.raises(RequestFailed) as caught:
            tree.view()
    assert (caught.value.status, caught.value.code) == (404, "tree_not_found")
    served.wait_for_pages(0, 2.0)


def test_a_search_is_watched(served: Served) -> None:
    with Client(served.url) as client:
        done = client.search(TASK, seed=1)
        assert done.result is not None
        assert done.result.solved
        events = list(client.watch_search(done.id))
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert [event.id for event in client.watch_search(done.id, after=4)] == [event.id for event in events[4:]]
        (node,) = client.branch_search(done.id, 0)
        assert client.get_search(done.id).status == "finished"
        assert list(client.watch_search(done.id))[-1].data["children"][0]["node"] == node
        running = client.search({**TASK, "target": 999_999}, budget={"tokens": 1_000_000}, wait=False)
        assert client.cancel_search(running.id).status == "cancelled"


async def test_the_same_with_an_event_loop(served: Served) -> None:
    async with AsyncClient(served.url) as client:
        async with await client.tree(PROMPT) as tree:
            kids = await tree.fork(tree.root, 2)
            nodes = await tree.generate(kids, max_tokens=8)
            assert len(nodes) == 2
        running = await client.search(TASK, seed=1, wait=False)
        events = [event async for event in client.watch_search(running.id)]
        assert events[-1].data["event"] == "result"
        with pytest.raises(RequestFailed, match="algorithm"):
            await client.search(TASK, algorithm="magic")


def test_an_unreachable_server_is_tried_again_and_then_said() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with Client(url) as client, pytest.raises(httpx.ConnectError):
        client.tree(PROMPT)

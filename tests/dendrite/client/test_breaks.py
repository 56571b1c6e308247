"""Both clients on answers and streams that break, against a server that sends what the test has written down."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from dendrite.client import AsyncClient, Client, Event, RequestFailed
from dendrite.client.calls import TRIES

END = 'event: end\ndata: {"after": 3}\n\n'


def event(id: int) -> str:
    return f'id: {id}\nevent: backup\ndata: {{"node": {id}}}\n\n'


class Script(ThreadingHTTPServer):
    """Answers each request with the next of `replies`, or its last: a status and a body, sent whole or cut off."""

    def __init__(self, replies: list[tuple[int, str, bool]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies = replies
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:  # the name that the base class looks for
        replies, asked = self.server.replies, self.server.asked
        status, body, whole = replies[min(len(asked), len(replies) - 1)]
        asked.append(self.path.partition("?")[2])
        self.send_response(status)
        self.send_header("content-length", str(len(body) + (not whole)))
        if status == 503:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def scripted(*replies: tuple[int, str, bool]) -> Iterator[Script]:
    with Script(list(replies)) as script:
        thread = threading.Thread(target=script.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield script
        finally:
            script.shutdown()
            thread.join()


async def watched(script: Script, *, waiting: bool) -> list[Event]:
    """The events of a search, by the client that waits or by the one with an event loop."""
    if waiting:
        with Client(script.url) as client:
            return list(client.watch_search("s"))
    async with AsyncClient(script.url) as client_:
        return [each async for each in client_.watch_search("s")]


both = pytest.mark.parametrize("waiting", [True, False], ids=["sync", "async"])


@both
@pytest.mark.parametrize("broken", ["", "id: 2\n", 'id: 2\nevent: backup\ndata: {"node": 2}\n', event(2)[:-1]])
async def test_a_stream_that_breaks_anywhere_goes_on_after_its_last_whole_event(broken: str, waiting: bool) -> None:
    with scripted((200, event(1) + broken, False), (200, event(2) + event(3) + END, True)) as script:
        events = await watched(script, waiting=waiting)
    assert [(each.id, each.data["node"]) for each in events] == [(1, 1), (2, 2), (3, 3)]
    assert script.asked == ["after=0", "after=1"]


@both
async def test_a_stream_that_stops_without_an_end_is_taken_up_again(waiting: bool) -> None:
    with scripted((200, event(1), True), (200, END, True)) as script:
        assert [each.id for each in await watched(script, waiting=waiting)] == [1]
    assert script.asked == ["after=0", "after=1"]


@both
async def test_a_server_that_never_says_the_end_is_asked_a_few_times(waiting: bool) -> None:
    with scripted((200, ": nothing\n\n", True)) as script, pytest.raises(httpx.RemoteProtocolError, match="before"):
        await watched(script, waiting=waiting)
    assert script.asked == ["after=0"] * TRIES


@both
async def test_a_refusal_is_told_at_once(waiting: bool) -> None:
    body = json.dumps({"error": {"message": "no such search", "code": "search_not_found", "param": "id"}})
    with scripted((404, body, True)) as script, pytest.raises(RequestFailed, match="404: no such search") as caught:
        await watched(script, waiting=waiting)
    assert (caught.value.code, caught.value.param, len(script.asked)) == ("search_not_found", "id", 1)


@both
async def test_a_refusal_that_is_not_the_servers_own_is_told_as_it_is(waiting: bool) -> None:
    with scripted((502, "<html>Bad gateway</html>", True)) as script, pytest.raises(RequestFailed) as caught:
        await watched(script, waiting=waiting)
    assert (caught.value.status, caught.value.message, caught.value.code) == (502, "<html>Bad gateway</html>", None)


async def looked_up(script: Script, *, waiting: bool) -> str:
    if waiting:
        with Client(script.url, "key") as client:
            return client.get_search("s").status
    async with AsyncClient(script.url, "key") as client_:
        return (await client_.get_search("s")).status


@both
async def test_a_server_that_says_later_is_asked_again_when_it_said(waiting: bool) -> None:
    found = {"id": "s", "status": "running", "algorithm": "mcts", "task": "t", "seconds": 1.0}
    later = (503, "", True)
    with scripted(later, (200, json.dumps({**found, "result": None, "error": None}), True)) as script:
        assert await looked_up(script, waiting=waiting) == "running"
    assert len(script.asked) == 2
    with scripted(later) as script, pytest.raises(RequestFailed, match="503"):
        await looked_up(script, waiting=waiting)
    assert len(script.asked) == TRIES


@both
async def test_an_answer_that_is_cut_off_is_asked_for_again(waiting: bool) -> None:
    with scripted((200, "{", False)) as script, pytest.raises(httpx.RemoteProtocolError):
        await looked_up(script, waiting=waiting)
    assert len(script.asked) == TRIES

"""Calls of a worker, many in a message, and what comes of them: replies, and tokens of generations under way.

    client                                       worker
    calls a, b        ── message 1: a, b ──────▶ begins a and b; keeps the message until there is something to tell
    calls c           ── message 2: c ─────────▶ begins c, keeps message 2 and answers message 1 with what there is
    calls d, e, f       (wait for an answer)
                      ◀── answer 1 ─────────────
                      ── message 3: d, e, f ───▶ and so on

A call alone is one message, sent at once. Of many the more go together the longer a message takes, so that a busy
machine has fewer of them, not more. While anything is under way a message waits at the worker for news.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import pickle
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from actors.background import Background
from actors.refs import ClusterNode
from dendrite.errors import ClusterError, DendriteError
from dendrite.search.backend import TopLogprobs

_log = logging.getLogger(__name__)

_WAIT_S = 2.0
"""How long a message waits for news before it is answered without: its client may be gone."""
_KEPT_S = 60.0
"""How long news are kept of which nobody asks for: a client that is there asks at once."""
_TURNS = 4
"""Turns of the event loop within which all that one step of the engine ends, or brings, is told of."""
_MESSAGES = 2
"""Messages of a client that a worker has at most: one that waits, one that brings calls."""


class Order(NamedTuple):
    """A call to be made: its id, the method, and its pickled arguments."""

    call: int
    method: str
    arguments: bytes


class Outcome(NamedTuple):
    """What a call has come to: its pickled reply, or its error, which is of a type of Dendrite's."""

    call: int
    reply: bytes
    failed: bool


class Piece(NamedTuple):
    """What a call has generated since its last piece: tokens from number `start` on of the new `node`.

    One may be lost, or late: the reply to the call has all tokens.
    """

    call: int
    node: ClusterNode
    start: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...]


News: TypeAlias = Outcome | Piece


class _Box:
    """News for one client. `users` are its calls under way and its messages that wait."""

    def __init__(self) -> None:
        self.users = 0
        self.news: list[News] = []
        self._waiter: asyncio.Future[None] | None = None

    def tell(self, news: News) -> None:
        self.news.append(news)
        self._answer()

    async def take(self) -> list[News]:
        """All news, once there are some; without any, after a while, or when another message comes to wait."""
        self._answer()
        if not self.news:
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(waiter, _WAIT_S)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        news, self.news = self.news, []
        return news

    def _answer(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Exchange:
    """The worker's side: makes calls, and gives clients the news of them."""

    def __init__(self, name: str, methods: Mapping[str, Callable[..., Awaitable[Any]]]) -> None:
        """`name` is the worker in words; `methods` are those that clients may call."""
        self._name, self._methods = name, methods
        self._boxes: dict[int, _Box] = {}
        self._making = Background()

    async def __call__(self, client: int, message: bytes) -> bytes:
        """Begin the calls of a message, and answer it with news, as soon as there are some."""
        box = self._boxes.setdefault(client, _Box())
        box.users += 1
        orders: list[Order] = pickle.loads(message)
        for order in orders:
            box.users += 1
            self._making.start(self._make(client, box, order))
        try:
            return pickle.dumps(await box.take())
        finally:
            self._left(client, box)

    def tell(self, client: int, piece: Piece) -> None:
        """Tell a client of tokens, if a call of it is under way."""
        if client in self._boxes:
            self._boxes[client].tell(piece)

    async def _make(self, client: int, box: _Box, order: Order) -> None:
        try:
            reply = await self._methods[order.method](*pickle.loads(order.arguments))
            box.tell(Outcome(order.call, pickle.dumps(reply), failed=False))
        except Exception as error:
            if not isinstance(error, DendriteError):
                _log.exception("%s: %s failed", self._name, order.method)
                error = ClusterError(f"{self._name} failed: {type(error).__name__}: {error}")
            box.tell(Outcome(order.call, pickle.dumps(error), failed=True))
        finally:
            self._left(client, box)

    def _left(self, client: int, box: _Box) -> None:
        box.users -= 1
        if box.users:
            return
        if box.news:  # a message for them is about to come, unless the client is gone
            asyncio.get_running_loop().call_later(_KEPT_S, self._drop, client, box, box.news)
        else:
            del self._boxes[client]

    def _drop(self, client: int, box: _Box, news: list[News]) -> None:
        if box.news is news and not box.users and self._boxes.get(client) is box:
            del self._boxes[client]


Send: TypeAlias = Callable[[int, bytes], Awaitable[bytes]]
"""Sends a message of a client, and gives its answer."""


class _Reply(NamedTuple):
    """What is waited for: of which call, counted from 1, where it goes, and who is told of tokens meanwhile."""

    number: int
    found: asyncio.Future[Any]
    tell: Callable[[Piece], None] | None


class Line:
    """The client's side, to one worker, on one event loop."""

    def __init__(self, id: int, send: Send) -> None:
        """Make an idle line: to the worker it is the client `id`. `send` raises a typed error if a message is lost."""
        self.id, self._send = id, send
        self._calls = self._sent = 0
        self._orders: list[Order] = []
        self._replies: dict[int, _Reply] = {}
        self._messages: set[asyncio.Task[None]] = set()

    def call(
        self, id: int, method: str, arguments: Sequence[Any], tell: Callable[[Piece], None] | None = None
    ) -> asyncio.Future[Any]:
        """Make a call. It is under way at once; the future has its reply, or its error.

        Args:
            id: no other call has it.
            method: of those that the worker lends.
            arguments: of it.
            tell: is called with the pieces that come meanwhile.

        Raises:
            TypeError, AttributeError, pickle.PicklingError: the arguments cannot be sent.
        """
        self._orders.append(Order(id, method, pickle.dumps(tuple(arguments))))
        self._calls += 1
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        found.add_done_callback(_seen)
        self._replies[id] = _Reply(self._calls, found, tell)
        self._go_on()
        return found

    def _go_on(self) -> None:
        """Send a message if there are calls to bring, or one must wait for news."""
        if len(self._messages) < _MESSAGES and (self._orders or (self._replies and not self._messages)):
            # In no caller's context: Ray cancels with a task the calls made in it, and these are others' too.
            message = asyncio.get_running_loop().create_task(self._exchange(), context=contextvars.Context())
            self._messages.add(message)

    async def _exchange(self) -> None:
        orders, self._orders = self._orders, []  # of all that has been called in this turn
        self._sent, this = self._calls, asyncio.current_task()
        try:
            news: list[News] = pickle.loads(await self._send(self.id, pickle.dumps(orders)))
        except Exception as error:
            self._fail(error)
        else:
            for each in news:
                self._hear(each)
        finally:
            self._messages.discard(this)
        self._go_on()

    def _hear(self, news: News) -> None:
        reply = self._replies.get(news.call)
        if reply is None:  # it has failed with a message that was lost
            return
        if isinstance(news, Piece):
            if reply.tell is not None:
                reply.tell(news)
            return
        del self._replies[news.call]
        if reply.found.done():
            return
        found = pickle.loads(news.reply)
        if news.failed:
            reply.found.set_exception(found)
        else:
            reply.found.set_result(found)

    def _fail(self, error: Exception) -> None:
        """A message is lost, and with it, perhaps, what has become of any call that was sent."""
        for id, reply in list(self._replies.items()):
            if reply.number <= self._sent:
                del self._replies[id]
                if not reply.found.done():
                    reply.found.set_exception(error)


def _seen(reply: asyncio.Future[Any]) -> None:
    """A call that nobody awaits may fail unheard."""
    if not reply.cancelled():
        reply.exception()

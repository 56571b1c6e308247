"""What every request passes: its id, its size, its time, its line in the log, and an answer whatever fails."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dendrite.logs import log_event
from serve_apps.errors import HttpError
from serve_apps.failures import told
from serve_apps.metrics import Metrics

access = logging.getLogger("dendrite.access")
_ID = re.compile("[A-Za-z0-9_.:-]{1,128}")
_LOGGED_BYTES = 65_536
_CLIENT_GONE = 499
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Those that metrics and the log name: a client may send any word."""
_SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}


@dataclass(slots=True)
class _Passage:
    id: str
    began: float
    status: int = 0
    received: int = 0
    body: bytearray = field(default_factory=bytearray)


class Edge:
    """The outermost layer, pure ASGI, so that streams pass through it unbuffered."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, max_body_bytes: int, log_prompts: bool, max_requests: int | None
    ) -> None:
        """Wrap an application. More than `max_requests` under `/v1` at once are refused; None sets no limit."""
        self._app, self._metrics = app, metrics
        self._max_body_bytes, self._log_prompts, self._max_requests = max_body_bytes, log_prompts, max_requests
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        passage = _Passage(given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}", time.monotonic())
        scope.setdefault("state", {})["request_id"] = passage.id
        counts = scope["path"].startswith("/v1/")
        self._under_way += counts
        self._metrics.in_flight.inc()
        try:
            await self._answer(scope, headers, receive, send, passage)
        finally:
            self._under_way -= counts
            self._metrics.in_flight.dec()
            self._note(scope, passage)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send, passage: _Passage) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                passage.status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = passage.id
                for name, value in _SAFE.items():
                    answered.setdefault(name, value)
            await send(message)

        async def received() -> Message:
            message = await receive()
            chunk = message.get("body", b"")
            passage.received += len(chunk)
            if passage.received > self._max_body_bytes:
                raise HTTPException(413, self._too_large)  # the one kind that FastAPI passes on from here
            if self._log_prompts and len(passage.body) < _LOGGED_BYTES:
                passage.body += chunk
            return message

        try:
            if self._max_requests is not None and self._under_way > self._max_requests:
                busy = f"{self._max_requests} requests are under way, which is the most"
                raise HttpError(503, busy, code="overloaded", retry_after_s=1.0)
            length = headers.get("content-length", "0")
            if length.isdecimal() and int(length) > self._max_body_bytes:
                raise HttpError(413, self._too_large, code="body_too_large")
            await self._app(scope, received, sent)
        except ClientDisconnect:
            passage.status = _CLIENT_GONE
        except Exception as error:
            answer = told(error, f"request {passage.id}")
            if passage.status:
                raise  # too late for another answer: the server cuts the connection
            with contextlib.suppress(OSError):
                await response_of(answer)(scope, receive, sent)

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body_bytes} bytes"

    def _note(self, scope: Scope, passage: _Passage) -> None:
        route, took = scope.get("route"), time.monotonic() - passage.began
        path = getattr(route, "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = passage.status or _CLIENT_GONE
        self._metrics.requests.labels(method, path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(took)
        if not access.isEnabledFor(logging.INFO):
            return
        state = scope["state"]
        line: dict[str, Any] = {"event": "request", "id": passage.id, "method": method, "route": path}
        line |= {"status": status, "ms": round(took * 1e3, 2), "key": state.get("owner"), "bytes": passage.received}
        if state.get("user") is not None:
            line["user"] = json.dumps(state["user"])  # which may hold line ends
        if self._log_prompts and passage.body:
            line["body"] = json.dumps(passage.body[:_LOGGED_BYTES].decode(errors="replace"))
        log_event(access, logging.INFO, line)


def response_of(error: HttpError) -> Response:
    """The response that tells of an error."""
    return Response(error.body.model_dump_json(), error.status, error.headers, media_type="application/json")

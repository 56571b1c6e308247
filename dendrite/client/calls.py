"""Requests and what comes back, apart from how they are sent: both clients share it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from dendrite.client.replies import Event
from dendrite.errors import DendriteError

TRIES, PAUSE_S = 3, 0.25
"""How often a request is sent if nothing or "later" comes back, and the first pause, which doubles."""
_LATER = (429, 503)
Prompt = str | Sequence[int]


class RequestFailed(DendriteError):
    """The server refused a request: its status, and the code, field and message of its answer."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        super().__init__(f"{status}: {message}")


@dataclass(frozen=True, slots=True)
class Call:
    """A request. A POST has an idempotency key, so that it may be sent again."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def post(cls, path: str, **body: Any) -> Call:
        """A POST; fields that are None are left out."""
        given = {name: value for name, value in body.items() if value is not None}
        return cls("POST", path, given, headers={"idempotency-key": uuid.uuid4().hex})

    def options(self) -> dict[str, Any]:
        """What httpx is to send."""
        return {"json": self.body, "params": self.query, "headers": self.headers}


def http_options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """How an httpx client is made."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key is not None else {}
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(timeout_s, read=None)}


def pause(attempt: int, response: httpx.Response | None) -> float | None:
    """Seconds to wait before a request is sent again; None if it is not to be."""
    if attempt + 1 >= TRIES or (response is not None and response.status_code not in _LATER):
        return None
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return float(asked) if asked.isdigit() else PAUSE_S * 2**attempt


def check(response: httpx.Response) -> None:
    """Raise what a response that has been read says went wrong.

    Raises:
        RequestFailed: it is not a success.
    """
    if response.is_success:
        return
    try:
        told = response.json()["error"]
        raise RequestFailed(response.status_code, told["message"], told.get("code"), told.get("param"))
    except (ValueError, KeyError, TypeError):
        raise RequestFailed(response.status_code, response.text[:200]) from None


class EventParser:
    """Puts the lines of one response together to events. `ended` once the server has said that there are no more."""

    def __init__(self) -> None:
        self._id, self._kind = 0, ""
        self._data: list[str] = []
        self.ended = False

    def push(self, line: str) -> Iterator[Event]:
        """Take a line; yields the event that it completes."""
        name, _, value = line.partition(": ")
        if name == "id":
            self._id = int(value)
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif not line and self._data:
            data, self._data = "\n".join(self._data), []
            if self._kind == "end":
                self.ended = True
            else:
                yield Event(id=self._id, data=json.loads(data))

    def check_ended(self) -> None:
        """Tell a stream that is over from one that has only stopped.

        Raises:
            httpx.RemoteProtocolError: the server has not said that there are no more events.
        """
        if not self.ended:
            raise httpx.RemoteProtocolError("the stream has stopped before the end of its events")


def tree_call(prompt: Prompt | None, messages: Sequence[Mapping[str, str]] | None, ttl_s: float) -> Call:
    """Make a tree."""
    given = prompt if prompt is None or isinstance(prompt, str) else list(prompt)
    return Call.post("/v1/trees", prompt=given, messages=list(messages) if messages is not None else None, ttl_s=ttl_s)


def search_call(task: Mapping[str, Any], settings: Mapping[str, Any], *, wait: bool) -> Call:
    """Begin a search."""
    return Call.post("/v1/search", task=dict(task), wait=wait, **settings)


def score_call(path: str, node: int, continuations: Sequence[Prompt]) -> Call:
    """Score continuations."""
    given = [each if isinstance(each, str) else list(each) for each in continuations]
    return Call.post(f"{path}/nodes/{node}/score", continuations=given)

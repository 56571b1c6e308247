"""Idempotency keys: a POST that is repeated is answered again, not done again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

from fastapi import Header
from pydantic import BaseModel

from dendrite.errors import DendriteError
from serve_apps.errors import HttpError

MOST = 65_536
"""How many answers are kept."""

IdempotencyKey: TypeAlias = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="A request repeated with its key and body gets the first answer again, for an hour by default.",
    ),
]
M = TypeVar("M", bound=BaseModel)


class Replays(Protocol):
    """Remembers answers by the key's owner and the idempotency key."""

    async def begin(self, owner: str, key: str, fingerprint: str) -> str | None:
        """The answer that was given before, as JSON; None if this is the first request, which is to end or forget.

        Raises:
            HttpError: 409 while the first request is under way, 422 if it was another request.
        """
        ...

    async def end(self, owner: str, key: str, answer: str) -> None:
        """Keep an answer."""
        ...

    async def forget(self, owner: str, key: str) -> None:
        """The request failed, and may be tried again."""
        ...


@dataclass(slots=True)
class _Kept:
    fingerprint: str
    until: float
    answer: str | None = None


class ReplayBook:
    """Answers in memory. Implements `Replays`."""

    def __init__(self, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s, self._clock = keep_s, clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def begin(self, owner: str, key: str, fingerprint: str) -> str | None:
        """See `Replays`."""
        now = self._clock()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._kept.popitem(last=False)
        kept = self._kept.get((owner, key))
        if kept is None:
            while len(self._kept) >= MOST:
                self._kept.popitem(last=False)
            self._kept[owner, key] = _Kept(fingerprint, now + self._keep_s)
            return None
        if kept.fingerprint != fingerprint:
            raise HttpError(422, "the idempotency key was used for another request", code="idempotency_mismatch")
        if kept.answer is None:
            raise HttpError(409, "the first request with this idempotency key is under way", code="idempotency_busy")
        return kept.answer

    async def end(self, owner: str, key: str, answer: str) -> None:
        """See `Replays`."""
        if (kept := self._kept.get((owner, key))) is not None:
            kept.answer = answer

    async def forget(self, owner: str, key: str) -> None:
        """See `Replays`."""
        self._kept.pop((owner, key), None)


async def once(
    replays: Replays,
    owner: str,
    key: str | None,
    what: str,
    body: BaseModel,
    kind: type[M],
    do: Callable[[], Awaitable[M]],
) -> M:
    """Do a request, or give the answer that it was given before.

    Args:
        replays: remembers answers.
        owner: whose request it is.
        key: its idempotency key; without one it is just done.
        what: the route and its ids, which make the request what it is beside its body.
        body: the request.
        kind: of the answer.
        do: does it.

    Raises:
        HttpError: 409 while the first request is under way, 422 if it was another request.
    """
    if key is None:
        return await do()
    told: dict[str, Any] = {"what": what, "body": body.model_dump(mode="json", by_alias=True)}
    fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    # Asked and told to the end where the caller is cancelled: else the key would stay busy for all who try again.
    begun = asyncio.create_task(replays.begin(owner, key, fingerprint))
    try:
        known = await asyncio.shield(begun)
        if known is not None:
            return kind.model_validate_json(known)
        answer = await do()
    except BaseException:
        with contextlib.suppress(DendriteError):
            if await begun is None:
                await replays.forget(owner, key)
        raise
    await asyncio.shield(replays.end(owner, key, answer.model_dump_json(by_alias=True)))
    return answer

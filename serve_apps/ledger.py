"""What each API key may use, and what it has used: requests, tokens, KV, trees."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

from serve_apps.errors import HttpError

Positive = Annotated[int, Field(ge=1)]


class KeyLimits(BaseModel):
    """The most that one key may use; None sets no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    """Prompt and generated tokens together. The request that passes the limit is finished; the next one waits."""
    concurrent_trees: Positive | None = None
    """Trees and searches that exist at once."""
    kv_bytes: Positive | None = None
    """KV of its trees, and what its requests under way may come to."""
    pinned_bytes: Positive | None = None
    """KV that it may pin, which counts towards `kv_bytes` too."""


class Accounts(Protocol):
    """Keeps the accounts of all keys. One for all ingress replicas, so that limits hold across them."""

    async def admit(self, owner: str, kv_bytes: int = 0) -> None:
        """Count a request, and reserve KV for it.

        Raises:
            HttpError: 429, with the time after which there is room if that comes by itself; nothing was counted.
        """
        ...

    async def settle(self, owner: str, kv_bytes: int, tokens: int) -> None:
        """Give reserved KV back, and count the tokens that were used."""
        ...


class Bucket:
    """A token bucket that holds a minute's worth; it may be overdrawn by what was not known beforehand."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._capacity, self._level, self._then = float(per_minute), float(per_minute), now

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` is there; 0 if it is."""
        self._level = min(self._capacity, self._level + (now - self._then) * self._capacity / 60.0)
        self._then = now
        return max(0.0, (amount - self._level) * 60.0 / self._capacity)

    def spend(self, amount: float) -> None:
        """Take something out."""
        self._level -= amount


@dataclass(slots=True)
class _Account:
    limits: KeyLimits
    requests: Bucket | None
    tokens: Bucket | None
    held: dict[str, int] = field(default_factory=lambda: {"kv_bytes": 0, "pinned_bytes": 0, "concurrent_trees": 0})


class Ledger:
    """The accounts, in memory. Implements `Accounts`; its other methods are for what holds trees beside it."""

    def __init__(self, limits: Mapping[str, KeyLimits], clock: Callable[[], float] = time.monotonic) -> None:
        """Open an account for each key id in `limits`; one that is not there has no limits."""
        self._limits, self._clock = dict(limits), clock
        self._accounts: dict[str, _Account] = {}

    async def admit(self, owner: str, kv_bytes: int = 0) -> None:
        """Count a request, and reserve KV for it; see `Accounts`."""
        account, now = self._account(owner), self._clock()
        for name, bucket, amount in (("requests", account.requests, 1.0), ("tokens", account.tokens, 1.0)):
            if bucket is not None and (wait := bucket.wait(now, amount)) > 0:
                raise HttpError(
                    429, f"the key's {name} per minute are used up", code=f"{name}_limit", retry_after_s=wait
                )
        self.hold(owner, kv_bytes=kv_bytes)
        if account.requests is not None:
            account.requests.spend(1.0)

    async def settle(self, owner: str, kv_bytes: int, tokens: int) -> None:
        """Give reserved KV back, and count tokens; see `Accounts`."""
        self.free(owner, kv_bytes=kv_bytes)
        self.spend(owner, tokens)

    def spend(self, owner: str, tokens: int) -> None:
        """Count tokens that were used."""
        account = self._account(owner)
        if account.tokens is not None:
            account.tokens.spend(tokens)

    def hold(self, owner: str, **amounts: int) -> None:
        """Take more of what is limited by how much there is at once: fields of `KeyLimits`.

        Raises:
            HttpError: 429; nothing was taken.
        """
        account = self._account(owner)
        for name, amount in amounts.items():
            limit = getattr(account.limits, name)
            if limit is not None and amount and account.held[name] + amount > limit:
                told = f"{name}: the key may hold {limit}, holds {account.held[name]}, and asks for {amount} more"
                raise HttpError(429, told, param=name, code=f"{name}_limit")
        for name, amount in amounts.items():
            account.held[name] += amount

    def free(self, owner: str, **amounts: int) -> None:
        """Give back what was taken."""
        account = self._account(owner)
        for name, amount in amounts.items():
            account.held[name] -= amount

    def room(self, owner: str, name: str) -> int | None:
        """How much more a key may hold of what `name`, a field of `KeyLimits`, limits; None without a limit."""
        account = self._account(owner)
        limit: int | None = getattr(account.limits, name)
        return None if limit is None else limit - account.held[name]

    def held(self, owner: str) -> Mapping[str, int]:
        """What a key holds now."""
        return dict(self._account(owner).held)

    def _account(self, owner: str) -> _Account:
        account = self._accounts.get(owner)
        if account is None:
            limits, now = self._limits.get(owner, KeyLimits()), self._clock()
            requests = Bucket(limits.requests_per_minute, now) if limits.requests_per_minute else None
            tokens = Bucket(limits.tokens_per_minute, now) if limits.tokens_per_minute else None
            account = self._accounts[owner] = _Account(limits, requests, tokens)
        return account

"""Who asks: API keys, hashed at rest and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated, TypeAlias

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, StringConstraints

from serve_apps.errors import HttpError
from serve_apps.ledger import KeyLimits

ANONYMOUS = "anonymous"
"""The owner of everything on a server without keys."""


class ApiKey(BaseModel):
    """A key as the server keeps it: never itself.

    `sha256` is the hash of the key in hexadecimal. Keys are to be random (`openssl rand -hex 32`), so that one round
    of a fast hash is as good as many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_.-]{1,64}$")]
    """Names the key in logs and limits."""
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    limits: KeyLimits = KeyLimits()


class Keyring:
    """All keys. Without any, everybody is `ANONYMOUS` and nothing is asked for."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def owner(self, key: str | None) -> str:
        """The id of a key. Takes as long for one key as for another, known or not.

        Raises:
            HttpError: 401.
        """
        if not self._keys:
            return ANONYMOUS
        given = hashlib.sha256((key or "").encode()).hexdigest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.sha256, given):
                found = known.id
        if found is None:
            raise HttpError(401, "a valid API key is needed: Authorization: Bearer …", code="invalid_api_key")
        return found


_bearer = HTTPBearer(auto_error=False, description="An API key. A server without keys asks for none.")


async def _owner(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    keyring: Keyring = request.app.state.services.keyring
    owner = keyring.owner(credentials.credentials if credentials is not None else None)
    request.state.owner = owner
    return owner


Owner: TypeAlias = Annotated[str, Depends(_owner)]
"""A route's parameter: the id of the key that the request came with."""

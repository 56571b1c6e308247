"""What the routes work with, wherever it lives: in this process, or behind messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from dendrite.grammar.limits import GrammarLimits
from dendrite.search.backend import Backend
from serve_apps.decoding import Pace, Releases
from serve_apps.errors import HttpError
from serve_apps.idempotency import Replays
from serve_apps.ledger import Accounts
from serve_apps.metrics import Metrics
from serve_apps.search_service import Searches
from serve_apps.security import Keyring
from serve_apps.text import TextCodec
from serve_apps.tree_service import Trees


class ServeSettings(BaseModel):
    """Limits that hold for every request, whoever makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: Annotated[int, Field(ge=1_024)] = 4 * 2**20
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 4_096
    """Most tokens of one choice; also what a chat gets that names no number."""
    max_choices: Annotated[int, Field(ge=1)] = 128
    """Most choices of one request, over all of its prompts."""
    span_seconds: Annotated[float, Field(gt=0.0)] = 0.1
    """How often a stream brings something new."""
    keep_searches_s: Annotated[float, Field(gt=0.0)] = 900.0
    """How long a search, with its trace, can be looked at after its end."""
    keep_answers_s: Annotated[float, Field(gt=0.0)] = 3_600.0
    """How long a request with an idempotency key is answered again."""
    grammar_limits: GrammarLimits = GrammarLimits(
        source_bytes=65_536, nesting=32, grammar_symbols=100_000, lexer_fuel=200_000
    )
    """Of a `response_format`; the engine's own hold too."""
    log_prompts: bool = False
    """Whether the access log holds request bodies."""

    def tokens(self, asked: int | None, field: str, default: int) -> int:
        """The most tokens of one choice: those asked for, else `default`, or `max_tokens` where that is less.

        Raises:
            HttpError: 400, more were asked for than `max_tokens`; names the field.
        """
        if asked is None:
            return min(default, self.max_tokens)
        if asked > self.max_tokens:
            raise HttpError(400, f"{field}={asked}: at most {self.max_tokens}", param=field, code="invalid_value")
        return asked


@dataclass(frozen=True, slots=True)
class Services:
    """All that an ingress needs. It keeps nothing of its own between requests."""

    backend: Backend
    codec: TextCodec
    keyring: Keyring
    accounts: Accounts
    trees: Trees
    searches: Searches
    replays: Replays
    settings: ServeSettings = field(default_factory=ServeSettings)
    metrics: Metrics = field(default_factory=Metrics)
    kv_bytes_per_token: int = 0
    """0 where the backend does not tell."""

    @property
    def pace(self) -> Pace:
        """How long the spans of a stream are."""
        return Pace(self.settings.span_seconds)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _releases(request: Request) -> Releases:
    releases: Releases = request.app.state.releases
    return releases


# The functions above are coroutines because FastAPI would run others on a thread, which costs more than they do.
Serving = Annotated[Services, Depends(_services)]
"""A route's parameter: the services of its app."""
Releasing = Annotated[Releases, Depends(_releases)]
"""A route's parameter: gives up the nodes of requests."""

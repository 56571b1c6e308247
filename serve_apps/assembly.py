"""The services in one process, over any backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dendrite.search.backend import Backend
from serve_apps.decoding import Pace
from serve_apps.idempotency import ReplayBook
from serve_apps.ledger import Ledger
from serve_apps.search_host import SearchHost
from serve_apps.security import ApiKey, Keyring
from serve_apps.services import ServeSettings, Services
from serve_apps.text import TextCodec
from serve_apps.tree_host import TreeHost


async def kv_bytes_per_token(backend: Backend) -> int:
    """Bytes of KV that a token takes; 0 where the backend does not tell."""
    stats = await backend.stats()
    return stats.page_bytes // stats.page_tokens if stats.page_tokens else 0


@asynccontextmanager
async def local_services(
    backend: Backend, codec: TextCodec, keys: Sequence[ApiKey] = (), settings: ServeSettings | None = None
) -> AsyncIterator[Services]:
    """Services that keep trees, searches and accounts in this process; all that they hold is given up at the end."""
    settings = settings if settings is not None else ServeSettings()
    per_token = await kv_bytes_per_token(backend)
    ledger = Ledger({key.id: key.limits for key in keys})
    trees = TreeHost(backend, codec, ledger, kv_bytes_per_token=per_token, pace=Pace(settings.span_seconds))
    searches = SearchHost(backend, ledger, settings.keep_searches_s)
    try:
        yield Services(
            backend=backend,
            codec=codec,
            keyring=Keyring(keys),
            accounts=ledger,
            trees=trees,
            searches=searches,
            replays=ReplayBook(settings.keep_answers_s),
            settings=settings,
            kv_bytes_per_token=per_token,
        )
    finally:
        await searches.aclose()
        await trees.aclose()

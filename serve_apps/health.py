"""Signs of life, and figures."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from dendrite.errors import DendriteError
from serve_apps.errors import HttpError
from serve_apps.schemas import ErrorBody, Response
from serve_apps.services import Serving

router = APIRouter(tags=["Operations"])
_PATIENCE_S = 2.0


class Health(Response):
    """The process, or all that it needs, is there."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """Whether this process answers."""
    return Health()


@router.get("/readyz", responses={503: {"model": ErrorBody}})
async def readyz(serving: Serving) -> Health:
    """Whether the backend answers too, so that requests can be served."""
    try:
        await asyncio.wait_for(serving.backend.stats(), _PATIENCE_S)
    except (DendriteError, TimeoutError):
        raise HttpError(503, "the backend does not answer", code="not_ready", retry_after_s=1.0) from None
    return Health()


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(serving: Serving) -> PlainTextResponse:
    """Figures in Prometheus' text format."""
    try:
        stats = await asyncio.wait_for(serving.backend.stats(), _PATIENCE_S)
    except (DendriteError, TimeoutError):
        stats = None
    return PlainTextResponse(serving.metrics.text(stats), media_type="text/plain; version=0.0.4; charset=utf-8")

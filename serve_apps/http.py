"""The HTTP application: all routes over one set of services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import dendrite
from dendrite.errors import DendriteError
from serve_apps import health, openai, search, trees
from serve_apps.decoding import Releases
from serve_apps.edge import Edge, response_of
from serve_apps.errors import HttpError, of_validation
from serve_apps.failures import told
from serve_apps.services import Services
from serve_apps.ui import page

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def create_app(services: Services, max_requests: int | None = None) -> FastAPI:
    """An ASGI application. It keeps nothing between requests but what is being released.

    More than `max_requests` at once are refused with 503; None leaves that to whoever passes requests on.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.releases.settle()

    app = FastAPI(title="Dendrite", version=dendrite.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    serve_from(app, services)
    for module in (openai, trees, search, health, page):
        app.include_router(module.router)
    app.add_exception_handler(DendriteError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _gone)
    settings = services.settings
    app.add_middleware(
        Edge,
        metrics=services.metrics,
        max_body_bytes=settings.max_body_bytes,
        log_prompts=settings.log_prompts,
        max_requests=max_requests,
    )
    return app


def serve_from(app: FastAPI, services: Services) -> None:
    """Have an application's next requests use these services; their settings and metrics are to be the same."""
    app.state.services = services
    app.state.releases = Releases(services.backend)


async def _failed(request: Request, error: Exception) -> Response:
    return response_of(told(error, f"request {request.state.request_id}"))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return response_of(of_validation(error.errors()))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = HttpError(error.status_code, str(error.detail), code=_CODES.get(error.status_code))
    response = response_of(refused)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the log and the metrics do

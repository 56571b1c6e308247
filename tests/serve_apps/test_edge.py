"""The application without a network, with routes that fail."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.errors import InvariantViolation
from dendrite.logs import fields_of
from serve_apps.assembly import local_services
from serve_apps.http import create_app
from serve_apps.services import ServeSettings
from serve_apps.text import TextCodec

SETTINGS = ServeSettings(max_body_bytes=2_000, log_prompts=True)


@pytest.fixture
async def app() -> AsyncIterator[FastAPI]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=1_024) as engine:
        backend = AsyncEngine(engine)
        async with local_services(backend, TextCodec.load("countdown"), (), SETTINGS) as services:
            yield create_app(services)
        await backend.aclose()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        yield client


@pytest.mark.parametrize("error", [RuntimeError("secret"), InvariantViolation("secret")])
async def test_a_failure_that_nobody_foresaw_is_in_the_log_and_nowhere_else(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def fail() -> None:
        raise error

    app.add_api_route("/fail", fail)
    answer = await client.get("/fail", headers={"x-request-id": "mine"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    [record] = [record for record in caplog.records if record.name == "dendrite.http"]
    assert record.getMessage() == "request mine failed"
    assert "secret" in caplog.text


async def test_methods_that_nobody_knows_have_one_label(client: httpx.AsyncClient) -> None:
    for method in ("INVENTED", "GUESSED"):
        assert (await client.request(method, "/healthz")).status_code == 405
    text = (await client.get("/metrics")).text
    assert 'dendrite_http_requests_total{method="other",route="/healthz",status="405"} 2.0' in text
    assert "INVENTED" not in text


async def test_bodies_are_logged_where_the_settings_say_so(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "countdown", "prompt": "Numbers:", "max_tokens": 1}
    with caplog.at_level(logging.INFO, logger="dendrite.access"):
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    [line] = [fields_of(record) for record in caplog.records if record.name == "dendrite.access"]
    assert json.loads(json.loads(line["body"])) == body


async def test_a_backend_that_does_not_answer_makes_the_server_unready(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (await client.get("/metrics")).text
    assert "dendrite_backend_forks 0.0" in before

    async def stats(self: AsyncEngine) -> None:
        raise TimeoutError

    monkeypatch.setattr(AsyncEngine, "stats", stats)
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "1"
    assert "dendrite_backend_forks 0.0" in (await client.get("/metrics")).text

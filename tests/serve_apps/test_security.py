"""Who may do what, and how much: keys, isolation, limits, sizes, logs."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from dendrite.logs import fields_of
from serve_apps.ledger import KeyLimits
from serve_apps.security import ApiKey
from serve_apps.services import ServeSettings
from tests.serve_apps.serving import PROMPT, Served, serve

LIMITS: dict[str, dict[str, int]] = {
    "alice": {},
    "bob": {},
    "slow": {"requests_per_minute": 2},
    "short": {"tokens_per_minute": 40},
    "narrow": {"concurrent_trees": 1},
    "small": {"kv_bytes": 800_000},
    "pins": {"pinned_bytes": 300_000},
}
MAX_REQUESTS = 8
COMPLETION = {"model": "countdown", "prompt": PROMPT, "max_tokens": 8}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    keys = [
        ApiKey(id=name, sha256=hashlib.sha256(f"sk-{name}".encode()).hexdigest(), limits=KeyLimits(**limits))
        for name, limits in LIMITS.items()
    ]
    with serve(keys, ServeSettings(max_body_bytes=20_000), max_requests=MAX_REQUESTS) as served:
        yield served


def ask(served: Served, name: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    with served.client(f"sk-{name}" if name is not None else None) as client:
        return client.request(method, path, **options)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer a b", "Basic c2stYWxpY2U6", "sk-alice"])
def test_no_route_but_health_and_the_page_works_without_a_key(guarded: Served, header: str | None) -> None:
    headers = {"authorization": header} if header is not None else {}
    spec = httpx.get(f"{guarded.url}/openapi.json").json()
    with guarded.client() as client:
        for path, methods in spec["paths"].items():
            if not path.startswith("/v1"):
                continue
            place = path.replace("{node}", "0").replace("{model}", "m").replace("{id}", "x").replace("{stream}", "y")
            for method in methods:
                answer = client.request(method, place, headers=headers, json={})
                assert answer.status_code == 401, (method, path, answer.text)
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/readyz", "/metrics", "/ui"):
            assert client.get(path).status_code == 200


def test_a_key_neither_sees_nor_touches_anothers_tree(guarded: Served) -> None:
    id = ask(guarded, "alice", "POST", "/v1/trees", json={"prompt": PROMPT}).json()["id"]
    verbs: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "", {}),
        ("DELETE", "", {}),
        ("POST", "/lease", {}),
        ("GET", "/nodes/0", {}),
        ("DELETE", "/nodes/0", {}),
        ("POST", "/nodes/0/fork", {}),
        ("POST", "/nodes/0/score", {"continuations": ["1"]}),
        ("POST", "/nodes/0/pin", {}),
        ("POST", "/nodes/0/generate", {}),
        ("POST", "/generate", {"nodes": [0]}),
    ]
    for method, path, body in verbs:
        theirs = ask(guarded, "bob", method, f"/v1/trees/{id}{path}", json=body)
        nobodys = ask(guarded, "bob", method, f"/v1/trees/tree_000{path}", json=body)
        assert theirs.status_code == nobodys.status_code == 404, (method, path)
        assert theirs.json() == json.loads(nobodys.text.replace("tree_000", id))
    assert ask(guarded, "alice", "GET", f"/v1/trees/{id}").json()["stats"]["nodes"] == 1
    search = {"task": {"kind": "countdown", "numbers": [3, 4, 50], "target": 62}, "seed": 1}
    mine = ask(guarded, "alice", "POST", "/v1/search", json=search).json()["id"]
    assert ask(guarded, "bob", "GET", f"/v1/searches/{mine}").status_code == 404
    assert ask(guarded, "bob", "DELETE", f"/v1/searches/{mine}").status_code == 404
    key = {"idempotency-key": "shared"}
    first = ask(guarded, "alice", "POST", "/v1/trees", json={"prompt": PROMPT}, headers=key).json()["id"]
    other = ask(guarded, "bob", "POST", "/v1/trees", json={"prompt": PROMPT}, headers=key).json()["id"]
    assert first != other
    for name, tree in (("alice", id), ("alice", first), ("bob", other)):
        assert ask(guarded, name, "DELETE", f"/v1/trees/{tree}").status_code == 200


def test_requests_per_minute(guarded: Served) -> None:
    statuses = [ask(guarded, "slow", "POST", "/v1/completions", json=COMPLETION) for _ in range(3)]
    assert [answer.status_code for answer in statuses] == [200, 200, 429]
    assert statuses[2].json()["error"]["code"] == "requests_limit"
    assert 1 <= int(statuses[2].headers["retry-after"]) <= 30


def test_tokens_per_minute(guarded: Served) -> None:
    first = ask(guarded, "short", "POST", "/v1/completions", json={**COMPLETION, "max_tokens": 30})
    second = ask(guarded, "short", "POST", "/v1/completions", json=COMPLETION)
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["error"]["code"] == "tokens_limit"


def test_trees_at_once(guarded: Served) -> None:
    first = ask(guarded, "narrow", "POST", "/v1/trees", json={"prompt": PROMPT}).json()["id"]
    assert ask(guarded, "narrow", "POST", "/v1/trees", json={"prompt": PROMPT}).status_code == 429
    search = {"task": {"kind": "countdown", "numbers": [3, 4, 50], "target": 62}}
    assert ask(guarded, "narrow", "POST", "/v1/search", json=search).status_code == 429
    assert ask(guarded, "narrow", "DELETE", f"/v1/trees/{first}").status_code == 200
    again = ask(guarded, "narrow", "POST", "/v1/trees", json={"prompt": PROMPT})
    assert again.status_code == 200
    ask(guarded, "narrow", "DELETE", f"/v1/trees/{again.json()['id']}")


def test_kv_bytes(guarded: Served) -> None:
    big = ask(guarded, "small", "POST", "/v1/completions", json={**COMPLETION, "max_tokens": 100, "n": 10})
    assert (big.status_code, big.json()["error"]["param"]) == (429, "kv_bytes")
    assert ask(guarded, "small", "POST", "/v1/completions", json=COMPLETION).status_code == 200
    tree = ask(guarded, "small", "POST", "/v1/trees", json={"prompt": PROMPT}).json()["id"]
    for _ in range(3):  # what was reserved comes back
        (kid,) = ask(guarded, "small", "POST", f"/v1/trees/{tree}/nodes/0/fork", json={}).json()["data"]
        node = f"/v1/trees/{tree}/nodes/{kid['id']}"
        assert ask(guarded, "small", "POST", f"{node}/generate", json={"max_tokens": 60}).status_code == 200
        assert ask(guarded, "small", "POST", f"{node}/generate", json={"max_tokens": 1_000}).status_code == 429
        assert ask(guarded, "small", "DELETE", node).status_code == 200
    assert ask(guarded, "small", "DELETE", f"/v1/trees/{tree}").status_code == 200


def test_pinned_bytes(guarded: Served) -> None:
    tree = ask(guarded, "pins", "POST", "/v1/trees", json={"prompt": PROMPT}).json()["id"]
    pins = [ask(guarded, "pins", "POST", f"/v1/trees/{tree}/nodes/0/pin", json={"ttl_s": 0.5}) for _ in range(3)]
    assert (pins[0].status_code, pins[-1].status_code) == (200, 429)
    ask(guarded, "pins", "DELETE", f"/v1/trees/{tree}")
    guarded.wait_for_pages(0, 3.0)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"x" * 30_000, 413),
        (b"{", 400),
        (b"", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"\xff\xfe", 400),
        (b'{"model": "countdown", "prompt": "\\ud800"}', 400),
        (b"[" * 9_000 + b"]" * 9_000, 400),
        (b'{"model": "countdown", "prompt": "x", "temperature": NaN}', 400),
        (b'{"model": "countdown", "prompt": "x", "max_tokens": 1e400}', 400),
    ],
)
def test_oversize_and_malformed_bodies(guarded: Served, content: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    answer = ask(guarded, "alice", "POST", "/v1/completions", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]

    def chunks() -> Iterator[bytes]:
        yield content[:5_000]
        yield content[5_000:]

    streamed = ask(guarded, "alice", "POST", "/v1/completions", content=chunks(), headers=headers)
    assert streamed.status_code == status, streamed.text


def test_requests_have_ids_and_no_cors(guarded: Served) -> None:
    given = ask(guarded, "alice", "GET", "/v1/models", headers={"x-request-id": "mine-1", "origin": "http://evil"})
    assert given.headers["x-request-id"] == "mine-1"
    assert not [name for name in given.headers if name.startswith("access-control")]
    odd = ask(guarded, "alice", "GET", "/v1/models", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"].startswith("req_")
    preflight = ask(guarded, None, "OPTIONS", "/v1/models", headers={"origin": "http://evil"})
    assert preflight.status_code == 405
    assert preflight.json()["error"]["code"] == "method_not_allowed"


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [fields_of(record) for record in list(caplog.records) if record.name == "dendrite.access"]


def test_the_access_log_has_no_prompts(guarded: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dendrite.access"):
        answer = ask(guarded, "alice", "POST", "/v1/completions", json={**COMPLETION, "user": "u-7"})
        id, deadline = answer.headers["x-request-id"], time.monotonic() + 30.0
        while not (logged := [line for line in access_lines(caplog) if line["id"] == id]):
            assert time.monotonic() < deadline, "nothing was logged"  # which happens after the answer
    (line,) = logged
    assert (line["key"], line["user"], line["status"], line["route"]) == ("alice", '"u-7"', 200, "/v1/completions")
    assert "Numbers" not in caplog.text
    assert "sk-alice" not in caplog.text


def test_too_many_requests_at_once_are_refused(guarded: Served) -> None:
    place = urlsplit(guarded.url)
    unfinished = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with ExitStack() as connections:
        for _ in range(MAX_REQUESTS):
            connection = connections.enter_context(socket.create_connection((place.hostname, place.port)))
            connection.sendall(unfinished)
        deadline = time.monotonic() + 30.0
        while (answer := ask(guarded, "alice", "GET", "/v1/models")).status_code == 200:
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert "retry-after" in answer.headers
        assert ask(guarded, None, "GET", "/healthz").status_code == 200
    while ask(guarded, "alice", "GET", "/v1/models").status_code != 200:
        assert time.monotonic() < deadline


def test_metrics_count_requests_and_tokens_but_name_nobody(guarded: Served) -> None:
    ask(guarded, "alice", "POST", "/v1/completions", json=COMPLETION)
    text = ask(guarded, None, "GET", "/metrics").text
    assert 'dendrite_http_requests_total{method="POST",route="/v1/completions",status="200"}' in text
    assert "dendrite_generated_tokens_total" in text
    assert "dendrite_backend_pages_held" in text
    assert not any(name in text for name in LIMITS)

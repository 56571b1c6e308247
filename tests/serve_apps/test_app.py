"""The application on Ray Serve: the same routes over a cluster, and what becomes of a stream whose worker dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import ray
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument
from serve_apps.app import build
from serve_apps.args import ServeArgs
from tests.serve_apps.serving import PROMPT

MODEL = "countdown"
LONG: dict[str, Any] = {"max_tokens": 300, "logit_bias": {"256": -100}, "seed": 5}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url(ray_here: None) -> Iterator[str]:
    port = free_port()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        engine = EngineConfig(kv_tokens=16_384, device="cpu")
        args = ServeArgs(model=MODEL, workers=1, engine=engine, min_ingresses=2, max_ingresses=2)
        serve.run(build(args), name="dendrite")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120.0) as client:
        yield client


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120.0) as client:
        yield client


def pages_held(http: httpx.Client) -> float:
    return pages_told(http.get("/metrics").text)


def pages_told(metrics: str) -> float:
    for line in metrics.splitlines():
        if line.startswith("dendrite_backend_pages_held "):
            return float(line.split()[1])
    raise AssertionError("no such figure")


def wait_until(condition: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_completions_trees_and_searches(http: httpx.Client, client: openai.OpenAI) -> None:
    assert http.get("/readyz").json() == {"status": "ok"}
    whole = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, seed=3, n=2)
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, seed=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    tree = f"/v1/trees/{http.post('/v1/trees', json={'prompt': PROMPT}).json()['id']}"
    kids = [node["id"] for node in http.post(f"{tree}/nodes/0/fork", json={"n": 2}).json()["data"]]
    body = {"nodes": kids, "max_tokens": 40, "seed": 3}
    grown = http.post(f"{tree}/generate", json=body).json()["data"]
    assert [node["text"] for node in grown] == [choice.text for choice in whole.choices]
    assert http.get("/v1/trees/none").json()["error"]["code"] == "tree_not_found"
    assert http.delete(tree).status_code == 200
    task = {"kind": "countdown", "numbers": [3, 4, 50], "target": 62}
    with http.stream("POST", "/v1/search", json={"task": task, "seed": 1, "stream": True}) as response:
        told = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert any(event.get("event") == "result" and event["solved"] for event in told)
    wait_until(lambda: pages_held(http) == 0, 2.0)


def test_a_client_that_leaves_frees_its_pages(http: httpx.Client, client: openai.OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt=PROMPT, n=4, stream=True, **LONG)
    next(iter(stream))
    stream.close()
    wait_until(lambda: pages_held(http) == 0, 1.0)


HOPELESS = {"kind": "countdown", "numbers": [1, 1, 1, 1], "target": 999}
CHAT = {
    "model": f"{MODEL}:mcts",
    "messages": [{"role": "user", "content": "Numbers: 1 1 1 1. Target: 999."}],
    "max_tokens": 1_000_000,
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"model": MODEL, "prompt": PROMPT, "n": 16, **LONG}),
        ("search", {"task": HOPELESS, "budget": {"tokens": 1_000_000}}),
        ("chat/completions", CHAT),
        ("chat/completions", {**CHAT, "stream": True}),
    ],
)
def test_a_client_that_does_not_wait_for_an_answer_frees_its_pages(
    http: httpx.Client, url: str, path: str, body: dict[str, Any]
) -> None:
    for patience_s in (0.05, 0.3):
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"/v1/{path}", json=body, timeout=patience_s)
        wait_until(lambda: pages_held(http) == 0, 2.0)
    asyncio.run(leave_while_pages_are_held(url, path, body))
    wait_until(lambda: pages_held(http) == 0, 1.0)


async def leave_while_pages_are_held(url: str, path: str, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as leaving, httpx.AsyncClient(base_url=url) as watching:
        answer = asyncio.create_task(leaving.post(f"/v1/{path}", json=body))
        while pages_told((await watching.get("/metrics")).text) == 0:
            assert not answer.done()
        answer.cancel()
        await asyncio.wait([answer])
    assert answer.cancelled()


def test_a_stream_outlives_its_worker(http: httpx.Client, client: openai.OpenAI) -> None:
    expected = client.completions.create(model=MODEL, prompt=PROMPT, **LONG).choices[0].text
    text, killed = "", False
    for chunk in client.completions.create(model=MODEL, prompt=PROMPT, stream=True, **LONG):
        text += chunk.choices[0].text
        if len(text) > 20 and not killed:
            killed = True
            kill_the_worker()
    assert killed
    assert text == expected
    wait_until(lambda: pages_held(http) == 0, 5.0)


def kill_the_worker() -> None:
    contacts = serve.get_deployment_handle("Desk", "dendrite").contacts.remote().result()
    os.kill(ray.get(contacts.workers[0].health.remote()).pid, signal.SIGKILL)


def test_a_lost_desk_is_replaced_and_what_it_kept_is_gone(http: httpx.Client) -> None:
    tree = f"/v1/trees/{http.post('/v1/trees', json={'prompt': PROMPT, 'ttl_s': 600.0}).json()['id']}"
    assert http.get(tree).status_code == 200
    (desk,) = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if "#Desk#" in each["name"]]
    ray.kill(ray.get_actor(desk, namespace="serve"))

    def is_gone() -> bool:
        answer = http.get(tree)
        if answer.status_code == 200:  # it is about to be killed
            return False
        assert answer.status_code in (410, 503), answer.text
        return answer.status_code == 410 and answer.json()["error"]["code"] == "tree_lost"

    def completes() -> bool:
        answer = http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, "max_tokens": 2})
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200

    wait_until(is_gone, 240.0)
    wait_until(completes, 240.0)
    wait_until(lambda: pages_held(http) == 0, 30.0)


def test_serve_makes_the_arguments_of_what_its_command_line_gives() -> None:
    made = call_user_app_builder_with_args_if_necessary(build, {"model": "countdown", "workers": "1"})
    assert isinstance(made, serve.Application)
    with pytest.raises(ValueError, match="workers"):
        call_user_app_builder_with_args_if_necessary(build, {"workers": "none"})


def test_arguments_are_checked(tmp_path: Any) -> None:
    for bad in ({"modell": "x"}, {"workers": 0}, {"min_ingresses": 5}, {"engine": {"page_size": 7}}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ServeArgs(**bad)
    keys = tmp_path / "keys.json"
    keys.write_text('[{"id": "a", "sha256": "sk-secret"}]')
    with pytest.raises(InvalidArgument, match="sha256") as caught:
        build(ServeArgs(keys=str(keys)))
    assert "sk-secret" not in str(caught.value)

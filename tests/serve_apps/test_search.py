"""Searches over real HTTP: a result, a trace that is watched, a cancellation, a branch by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dendrite.search.trace_events import KINDS
from tests.serve_apps.serving import Served

EASY = {"kind": "countdown", "numbers": [3, 4, 50], "target": 62}
HOPELESS = {"kind": "countdown", "numbers": [1, 1, 1, 1], "target": 999}
LONG = {"task": HOPELESS, "budget": {"tokens": 1_000_000}, "wait": False}


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client
    served.wait_for_pages(0, 1.0)


def test_a_problem_is_solved(http: httpx.Client) -> None:
    answer = http.post("/v1/search", json={"task": EASY, "seed": 1}).json()
    assert answer["status"] == "finished"
    assert answer["result"]["solved"]
    assert answer["result"]["text"].rstrip().endswith("(62)")
    assert http.get(f"/v1/searches/{answer['id']}").json() == answer


def test_the_trace_is_streamed_and_can_be_followed_again(http: httpx.Client) -> None:
    body = {"task": EASY, "seed": 1, "stream": True}
    with http.stream("POST", "/v1/search", json=body) as response:
        id = response.headers["x-search-id"]
        lines = list(response.iter_lines())
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][:-1]
    assert [event["event"] for event in told[:2]] == ["search", "root"]
    assert told[-1]["event"] == "result"
    for event in told:
        KINDS[event["event"]].model_validate_json(json.dumps(event))
    with http.stream("GET", f"/v1/searches/{id}/events", params={"after": 3}) as response:
        rest = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")][:-1]
    assert rest == told[3:]


def test_a_cancelled_search_holds_nothing(http: httpx.Client, served: Served) -> None:
    id = http.post("/v1/search", json=LONG).json()["id"]
    while not served.pages_held():
        time.sleep(0.01)
    assert http.get(f"/v1/searches/{id}").json()["status"] == "running"
    assert http.delete(f"/v1/searches/{id}").json()["status"] == "cancelled"
    assert served.wait_for_pages(0, 1.0) < 1.0
    assert http.delete(f"/v1/searches/{id}").json()["status"] == "cancelled"


def test_a_client_that_waited_and_left_ends_the_search(http: httpx.Client, served: Served) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/search", json={**LONG, "wait": True}, timeout=0.5)
    assert served.wait_for_pages(0, 1.0) < 1.0


def test_any_node_can_be_branched_by_hand(http: httpx.Client) -> None:
    id = http.post("/v1/search", json={"task": EASY, "seed": 1}).json()["id"]
    made = http.post(f"/v1/searches/{id}/nodes/0/branch", json={"n": 2, "seed": 5}).json()["nodes"]
    below = http.post(f"/v1/searches/{id}/nodes/{made[0]}/branch", json={}).json()["nodes"]
    with http.stream("GET", f"/v1/searches/{id}/events") as response:
        told = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    landed = [event for event in told if event.get("event") == "children" and event["call"] >= 1_000_000]
    assert [child["node"] for event in landed for child in event["children"]] == made + below
    assert landed[1]["node"] == made[0]
    assert http.post(f"/v1/searches/{id}/nodes/12345/branch", json={}).status_code == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"algorithm": "magic"}, "algorithm"),
        ({"options": {"magic": 1}}, "magic"),
        ({"task": {"kind": "countdown", "numbers": [1], "target": 1}}, "numbers"),
        ({"task": {"kind": "mine.py", "code": "import os"}}, "task"),
        ({"reward_code": "lambda: 1"}, "reward_code"),
        ({"budget": {"tokens": 0}}, "budget.tokens"),
        ({"task": {"kind": "json_schema", "schema": {"pattern": "(a+)+$"}, "instruction": "x"}}, "task.schema"),
        ({"task": {"kind": "json_schema", "schema": {"$ref": "http://x/y"}, "instruction": "x"}}, "task.schema"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = http.post("/v1/search", json={"task": EASY, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


def test_a_deep_schema_is_refused(http: httpx.Client) -> None:
    schema: dict[str, Any] = {}
    for _ in range(40):
        schema = {"properties": {"a": schema}}
    task = {"kind": "json_schema", "schema": schema, "instruction": "x"}
    answer = http.post("/v1/search", json={"task": task})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "schema_too_complex")


def test_a_declared_reward_is_searched_for(http: httpx.Client) -> None:
    task = {"kind": "text", "prompt": "Numbers: 1 2 3. Target: 6.\n", "reward": "contains", "text": "="}
    answer = http.post("/v1/search", json={"task": task, "algorithm": "best_of_n", "oracle": True}).json()
    assert answer["result"]["solved"], answer
    assert answer["result"]["oracle"]

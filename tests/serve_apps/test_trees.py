"""Trees over real HTTP: the verbs, streams that are taken up again, leases, pins, idempotency."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dendrite.config import SamplingParams
from tests.serve_apps.serving import PROMPT, Served

LONG = {"max_tokens": 400, "logit_bias": {"256": -100}}
"""A generation that goes on until it is ended."""


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client
    served.wait_for_pages(0, 1.0)


@pytest.fixture
def tree(http: httpx.Client) -> Iterator[str]:
    id = http.post("/v1/trees", json={"prompt": PROMPT}).json()["id"]
    yield f"/v1/trees/{id}"
    http.delete(f"/v1/trees/{id}")


def made(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def events(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    id = 0
    for line in lines:
        if line.startswith("id: "):
            id = int(line[4:])
        elif line.startswith("data: "):
            yield id, json.loads(line[6:])


def test_fork_generate_look(http: httpx.Client, tree: str, served: Served) -> None:
    kids = [node["id"] for node in made(http.post(f"{tree}/nodes/0/fork", json={"n": 3}))["data"]]
    done = made(http.post(f"{tree}/generate", json={"nodes": kids, "max_tokens": 24, "seed": 9, "stop": "\n"}))
    assert [node["id"] for node in done["data"]] == kids
    assert done["usage"]["completion_tokens"] == sum(len(node["tokens"]) for node in done["data"])
    root = served.engine.prefill(PROMPT)
    (kid,) = root.fork()
    served.engine.decode(kid, SamplingParams(max_tokens=24, seed=9, stop=("\n",)))
    assert done["data"][0]["tokens"] == kid.tokens
    assert done["data"][0]["text"] == kid.text
    root.release(subtree=True)
    whole = made(http.get(tree))
    assert [node["parent"] for node in whole["nodes"]] == [None, 0, 0, 0]
    assert whole["nodes"][0]["children"] == kids
    assert whole["stats"]["live_nodes"] == 4
    assert whole["stats"]["kv_bytes"] > 0


def test_a_branch_from_any_token_goes_on_as_if_it_had_been_generated_there(http: httpx.Client, tree: str) -> None:
    (kid,) = made(http.post(f"{tree}/nodes/0/fork", json={}))["data"]
    grown = made(http.post(f"{tree}/nodes/{kid['id']}/generate", json={"max_tokens": 40, "temperature": 0}))["data"][0]
    for at in (1, 2, 7, len(grown["tokens"])):
        (fork,) = made(http.post(f"{tree}/nodes/{kid['id']}/fork", json={"at": at}))["data"]
        left = len(grown["tokens"]) - at
        if left:
            again = made(http.post(f"{tree}/nodes/{fork['id']}/generate", json={"max_tokens": left, "temperature": 0}))
            assert again["data"][0]["tokens"] == grown["tokens"][at:]
    (early,) = made(http.post(f"{tree}/nodes/0/fork", json={"at": 5}))["data"]
    assert made(http.post(f"{tree}/nodes/{early['id']}/generate", json={"max_tokens": 3}))["data"][0]["tokens"]
    for at in (0, len(PROMPT) + 1):
        assert http.post(f"{tree}/nodes/0/fork", json={"at": at}).status_code == 400


def test_a_node_goes_on_where_it_ended(http: httpx.Client, tree: str) -> None:
    ids = [node["id"] for node in made(http.post(f"{tree}/nodes/0/fork", json={"n": 2}))["data"]]
    whole = made(http.post(f"{tree}/nodes/{ids[0]}/generate", json={"max_tokens": 20, "seed": 4}))["data"][0]
    for size in (5, 1, 14):
        answer = made(http.post(f"{tree}/nodes/{ids[1]}/generate", json={"max_tokens": size, "seed": 4}))
        assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": size, "total_tokens": size}
        parts = answer["data"][0]
    assert parts["tokens"] == whole["tokens"]


def test_a_stop_that_spans_two_spans_ends_the_node(http: httpx.Client, tree: str) -> None:
    ids = [node["id"] for node in made(http.post(f"{tree}/nodes/0/fork", json={"n": 2}))["data"]]
    free = made(http.post(f"{tree}/nodes/{ids[0]}/generate", json={"max_tokens": 30, "seed": 4}))["data"][0]
    for start in range(6):
        stop = free["text"][start : start + 3]
        (kid,) = made(http.post(f"{tree}/nodes/0/fork", json={}))["data"]
        body = {"max_tokens": 30, "seed": 4, "stop": stop}
        ended = made(http.post(f"{tree}/nodes/{kid['id']}/generate", json=body))["data"][0]
        assert ended["text"] == free["text"][: free["text"].index(stop) + 3]
        assert ended["finish_reason"] == "stop"
        on = made(http.post(f"{tree}/nodes/{kid['id']}/generate", json={"max_tokens": 5, "seed": 4}))["data"][0]
        assert on["text"] == free["text"][: len(on["text"])]


def test_scores_are_the_models_and_leave_the_tree_alone(http: httpx.Client, tree: str, served: Served) -> None:
    answer = made(http.post(f"{tree}/nodes/0/score", json={"continuations": ["7-3=4", [55, 43]]}))["scores"]
    root = served.engine.prefill(PROMPT)
    assert answer[0] == pytest.approx(served.engine.score(root, list(b"7-3=4")), rel=1e-3)
    assert answer[1] == pytest.approx(served.engine.score(root, [55, 43]), rel=1e-3)
    root.release()
    assert made(http.get(tree))["stats"]["nodes"] == 1
    twice = http.post(f"{tree}/generate", json={"nodes": [0, 0]})
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "nodes")
    refused = http.post(f"{tree}/nodes/0/score", json={"continuations": [[99_999]]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "continuations")


def test_a_stream_can_be_taken_up_at_any_event(http: httpx.Client, tree: str) -> None:
    ids = [node["id"] for node in made(http.post(f"{tree}/nodes/0/fork", json={"n": 2}))["data"]]
    body = {"nodes": ids, "max_tokens": 40, "seed": 1, "stream": True}
    seen: list[tuple[int, dict[str, Any]]] = []
    with http.stream("POST", f"{tree}/generate", json=body) as response:
        stream = response.headers["x-stream-id"]
        for each in events(response.iter_lines()):
            seen.append(each)
            if len(seen) == 3:
                break
    with http.stream("GET", f"{tree}/streams/{stream}", headers={"last-event-id": str(seen[-1][0])}) as response:
        seen += events(response.iter_lines())
    with http.stream("GET", f"{tree}/streams/{stream}") as response:
        again = list(events(response.iter_lines()))
    assert seen == again
    assert http.get(f"{tree}/streams/none").json()["error"]["code"] == "stream_not_found"
    assert [id for id, _ in again[:-1]] == list(range(1, len(again)))
    for id in ids:
        node = made(http.get(f"{tree}/nodes/{id}"))
        mine = [event for _, event in again if event.get("node") == id]
        assert [token for event in mine if event["event"] == "tokens" for token in event["tokens"]] == node["tokens"]
        assert "".join(event.get("text", "") for event in mine) == node["text"]
        assert mine[-1]["finish_reason"] == node["finish_reason"]


def test_deleting_a_node_cancels_it_and_frees_its_pages(http: httpx.Client, tree: str, served: Served) -> None:
    before = served.pages_held()
    (kid,) = made(http.post(f"{tree}/nodes/0/fork", json={}))["data"]
    with http.stream("POST", f"{tree}/nodes/{kid['id']}/generate", json={**LONG, "stream": True}) as response:
        lines = events(response.iter_lines())
        next(lines)
        assert http.post(f"{tree}/nodes/{kid['id']}/generate", json=LONG).status_code == 409
        made(http.delete(f"{tree}/nodes/{kid['id']}"))
        assert served.wait_for_pages(before, 1.0) < 1.0
        *_, (_, last), (_, end) = lines
    assert last["finish_reason"] == "cancelled"
    assert "after" in end
    assert http.get(f"{tree}/nodes/{kid['id']}").status_code == 404


def test_children_outlive_a_released_parent(http: httpx.Client, tree: str) -> None:
    (kid,) = made(http.post(f"{tree}/nodes/0/fork", json={}))["data"]
    made(http.post(f"{tree}/nodes/{kid['id']}/generate", json={"max_tokens": 10}))
    (grandchild,) = made(http.post(f"{tree}/nodes/{kid['id']}/fork", json={}))["data"]
    made(http.delete(f"{tree}/nodes/{kid['id']}"))
    assert made(http.get(f"{tree}/nodes/{kid['id']}"))["state"] == "released"
    assert http.post(f"{tree}/nodes/{kid['id']}/fork", json={}).status_code == 410
    made(http.post(f"{tree}/nodes/{grandchild['id']}/generate", json={"max_tokens": 10}))
    made(http.delete(f"{tree}/nodes/{grandchild['id']}"))
    assert [node["id"] for node in made(http.get(tree))["nodes"]] == [0]


def test_a_subtree_goes_as_a_whole(http: httpx.Client, tree: str) -> None:
    (kid,) = made(http.post(f"{tree}/nodes/0/fork", json={}))["data"]
    made(http.post(f"{tree}/nodes/{kid['id']}/fork", json={"n": 3}))
    made(http.delete(f"{tree}/nodes/{kid['id']}", params={"subtree": True}))
    assert made(http.get(tree))["stats"]["nodes"] == 1


def test_a_lease_that_runs_out_takes_the_tree_along(http: httpx.Client, served: Served) -> None:
    tree = made(http.post("/v1/trees", json={"prompt": PROMPT, "ttl_s": 1.0}))["id"]
    kept = made(http.post("/v1/trees", json={"prompt": PROMPT, "ttl_s": 1.0}))["id"]
    made(http.post(f"/v1/trees/{kept}/lease", json={"ttl_s": 30.0}))
    time.sleep(1.5)
    gone = http.get(f"/v1/trees/{tree}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "lease_expired")
    assert http.post(f"/v1/trees/{tree}/lease", json={}).status_code == 410
    assert made(http.get(f"/v1/trees/{kept}"))["expires_in_s"] > 20
    made(http.delete(f"/v1/trees/{kept}"))
    served.wait_for_pages(0, 1.0)


def test_a_pin_holds_a_path_past_its_tree(http: httpx.Client, served: Served) -> None:
    tree = made(http.post("/v1/trees", json={"prompt": PROMPT}))["id"]
    pin = made(http.post(f"/v1/trees/{tree}/nodes/0/pin", json={"ttl_s": 1.0}))
    assert pin["kv_bytes"] > 0
    made(http.delete(f"/v1/trees/{tree}"))
    time.sleep(0.3)
    assert served.pages_held() > 0
    served.wait_for_pages(0, 2.0)


def test_a_repeated_post_is_done_once(http: httpx.Client, tree: str) -> None:
    key = {"idempotency-key": f"fork {tree}"}
    first = made(http.post(f"{tree}/nodes/0/fork", json={"n": 2}, headers=key))
    assert made(http.post(f"{tree}/nodes/0/fork", json={"n": 2}, headers=key)) == first
    assert http.post(f"{tree}/nodes/0/fork", json={"n": 3}, headers=key).status_code == 422
    assert made(http.get(tree))["stats"]["nodes"] == 3
    node = first["data"][0]["id"]
    key = {"idempotency-key": f"generate {tree}"}
    body = {"max_tokens": 9, "seed": 1}
    once = made(http.post(f"{tree}/nodes/{node}/generate", json=body, headers=key))
    twice = made(http.post(f"{tree}/nodes/{node}/generate", json=body, headers=key))
    assert once == twice
    failing = {"idempotency-key": "fails"}
    for _ in range(2):
        assert http.post(f"{tree}/nodes/77/fork", json={}, headers=failing).status_code == 404


def test_messages_make_a_tree_too(http: httpx.Client) -> None:
    tree = made(http.post("/v1/trees", json={"messages": [{"role": "user", "content": PROMPT}]}))
    assert tree["nodes"][0]["text"] == PROMPT
    made(http.delete(f"/v1/trees/{tree['id']}"))
    for body in ({}, {"prompt": PROMPT, "messages": []}, {"prompt": ""}, {"prompt": PROMPT, "ttl": 3}):
        assert http.post("/v1/trees", json=body).status_code == 400


FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "steps",
        "schema": {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"enum": [1, 22]}, "minItems": 9, "maxItems": 9}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


def test_documents_go_on_where_branches_leave_them(http: httpx.Client, tree: str) -> None:
    begin = {"max_tokens": 7, "response_format": FORM, "temperature": 1.5}
    goon = {"max_tokens": 200, "response_format": FORM, "temperature": 1.5}
    (kid,) = made(http.post(f"{tree}/nodes/0/fork", json={}))["data"]
    start = made(http.post(f"{tree}/nodes/{kid['id']}/generate", json=begin))["data"][0]
    for at in (3, 7):
        forks = [
            node["id"] for node in made(http.post(f"{tree}/nodes/{kid['id']}/fork", json={"n": 3, "at": at}))["data"]
        ]
        for node in made(http.post(f"{tree}/generate", json={"nodes": forks, **goon}))["data"]:
            assert node["finish_reason"] == "stop"
            document = json.loads("".join(chr(token) for token in start["tokens"][:at] if token < 256) + node["text"])
            assert len(document["a"]) == 9
    whole = made(http.post(f"{tree}/nodes/{kid['id']}/generate", json=goon))["data"][0]
    assert len(json.loads(whole["text"])["a"]) == 9
    after = made(http.post(f"{tree}/nodes/{kid['id']}/generate", json=goon))["data"][0]
    assert after["text"].count('"a"') == 2, "the first document had ended"
    free = made(http.post(f"{tree}/nodes/{kid['id']}/generate", json={"max_tokens": 3}))["data"][0]
    assert len(free["tokens"]) > len(after["tokens"])


def test_a_form_that_no_grammar_holds_is_refused(http: httpx.Client, tree: str) -> None:
    schema = {"name": "no", "schema": {"type": "array", "uniqueItems": True}}
    refused = http.post(
        f"{tree}/nodes/0/generate", json={"response_format": {"type": "json_schema", "json_schema": schema}}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format.json_schema.schema"

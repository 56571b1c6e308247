"""Branches streamed over HTTP: a tree on the server, four children that grow at once, and a branch from inside one.

Only httpx is used here, to show what goes over the wire; docs/http.md lists the routes, and `dendrite.client` wraps
them. Run it with `python examples/streaming_http.py [--url http://127.0.0.1:8000]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from serving import parse_url, server

PROMPT = "Numbers: 3 7 8 25. Target: 92.\n"


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of a stream: their kind and data, until the one that ends it."""
    kind = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data" and kind != "end":
            yield kind, json.loads(value)


def fork(http: httpx.Client, tree: str, node: int, **settings: int) -> list[int]:
    """Fork a node of a tree; the children's numbers."""
    answer = http.post(f"/v1/trees/{tree}/nodes/{node}/fork", json=settings)
    return [child["id"] for child in answer.raise_for_status().json()["data"]]


def grow(http: httpx.Client, tree: str, nodes: Sequence[int]) -> dict[int, tuple[str, float]]:
    """Generate a line on each of the nodes and print the portions as they come; return the texts and their values."""
    texts, values = dict.fromkeys(nodes, ""), dict.fromkeys(nodes, 0.0)
    body = {"nodes": list(nodes), "max_tokens": 32, "stop": "\n", "temperature": 1.0, "stream": True}
    with http.stream("POST", f"/v1/trees/{tree}/generate", json=body) as response:
        response.raise_for_status()
        for kind, data in events(response):
            node = data["node"]
            if kind == "tokens":
                texts[node] += data["text"]
                print(f"  node {node} +{len(data['tokens'])}: {texts[node].rstrip()}", flush=True)
            elif kind == "node":
                values[node] = data["value"] or 0.0
    return {node: (texts[node], values[node]) for node in nodes}


def main(args: Sequence[str] | None = None) -> list[str]:
    """Stream two generations of branches; return the texts of the second, from the prompt's end on."""
    url = parse_url("Stream the branches of a tree over HTTP.", args)
    with server(url) as base, httpx.Client(base_url=base, timeout=60.0) as http:
        tree = http.post("/v1/trees", json={"prompt": PROMPT}).raise_for_status().json()["id"]
        try:
            print("four branches of the prompt, a portion of tokens at a time:")
            first = grow(http, tree, fork(http, tree, 0, n=4))
            best = max(first, key=lambda node: first[node][1])
            print(f"three others from the first token of node {best}, whose value is {first[best][1]:.2f}:")
            second = grow(http, tree, fork(http, tree, best, n=3, at=1))
        finally:
            http.delete(f"/v1/trees/{tree}")
    return [first[best][0][0] + text for text, _ in second.values()]


if __name__ == "__main__":
    main()

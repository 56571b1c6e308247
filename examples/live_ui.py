"""A tree that grows in the browser: begins a search on a server and prints a link to watch it by.

On the page the tree can be walked, played back, branched by hand and cancelled; what comes is printed here too. A
server that this program has started goes on until Enter or Ctrl-C. Run it with
`python examples/live_ui.py [--url http://127.0.0.1:8000]`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from dendrite.client import Client, Event, SearchOutcome
from serving import parse_url, server

PROBLEM = MappingProxyType({"kind": "countdown", "numbers": [5, 34, 43, 46], "target": 576})
SETTINGS = MappingProxyType({"algorithm": "mcts", "budget": {"tokens": 4_096}, "seed": 0})


def follow(events: Iterable[Event]) -> None:
    """Print the thoughts as they come, indented by their depth."""
    depths = {0: 0}
    for event in events:
        for child in event.data["children"] if event.data["event"] == "children" else ():
            depths[child["node"]] = depth = depths[event.data["node"]] + 1
            value = "" if child["value"] is None else f"  {child['value']:.2f}"
            print(f"{'  ' * depth}{child['text'].rstrip()}{value}", flush=True)


def main(args: Sequence[str] | None = None, problem: Mapping[str, Any] = PROBLEM) -> SearchOutcome | None:
    """Search, show what comes, and keep the page there; return what was found, None if the search was cancelled."""
    url = parse_url("Watch a search grow in the browser.", args)
    with server(url) as base, Client(base) as client:
        begun = client.search(problem, wait=False, **SETTINGS)
        print(f"watch it at {base}/ui#{begun.id}", flush=True)
        follow(client.watch_search(begun.id))
        ended = client.get_search(begun.id)
        if ended.result is not None:
            print(f"{ended.result.answer or 'no answer'}: {ended.result.nodes} nodes, {ended.result.tokens} tokens")
        if url is None:
            print("the page is there until Enter or Ctrl-C", flush=True)
            with suppress(KeyboardInterrupt):
                sys.stdin.readline()
    return ended.result


if __name__ == "__main__":
    main()

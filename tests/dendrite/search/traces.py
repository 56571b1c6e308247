"""Random traces of searches that keep to schema 1, for tests of what reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

Event = dict[str, Any]

TEXTS = (
    "8*3=24 (left: 24 7 25)\n",
    "25-7=18 (left: 18 3 8)\n",
    'say "no"\\n\n',
    "</script><!-- & <b>\n",
    "grün ✓ 漢字\n",
    "",
)


@dataclass
class Growth:
    """A search under way: nodes with depths, calls in flight, and what it has told so far."""

    random: Random
    events: list[Event] = field(default_factory=list)
    depth: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    flying: dict[int, int] = field(default_factory=dict)
    calls: int = 0
    clock: float = 0.0

    def tell(self, event: str, **fields: Any) -> None:
        self.clock = round(self.clock + self.random.random() * 0.02, 4)
        self.events.append({"event": event, "time": self.clock, **fields})

    def expand(self) -> None:
        """Mostly where it has gone deep, and a little anywhere, as a search does."""
        places = [node for node in self.depth if node not in self.ended and self.depth[node] < 8]
        if not places:
            return
        node = places[int(len(places) * self.random.random() ** 0.7)]
        self.flying[self.calls] = node
        self.tell(
            "expand", call=self.calls, node=node, n=4, max_tokens=24, temperature=0.8, seed=self.random.getrandbits(32)
        )
        self.calls += 1

    def land(self) -> None:
        call = self.random.choice(sorted(self.flying))
        node = self.flying.pop(call)
        children = [
            self.child(len(self.depth), self.depth[node] + 1) for _ in range(self.random.choice((0, 1, 2, 4, 4)))
        ]
        self.tell("children", call=call, node=node, batch=call // 2, children=children)
        for child in children:
            if child["value"] is not None or child["reward"] is not None:
                worth = child["value"] if child["reward"] is None else child["reward"]
                self.tell("backup", node=child["node"], value=worth)

    def child(self, node: int, depth: int) -> Event:
        random = self.random
        ended = depth > 2 and random.random() < 0.2
        reward = random.choice((0.0, 0.0, 0.25, 1.0, None)) if ended else None
        length = random.randrange(0, 12)
        self.depth[node] = depth
        if ended:
            self.ended.add(node)
        return {
            "node": node,
            "text": random.choice(TEXTS),
            "tokens": [random.randrange(512) for _ in range(length)],
            "logprobs": [round(-random.expovariate(2.0), 4) for _ in range(length)],
            "value": None if random.random() < 0.1 else round(random.random(), 4),
            "reward": reward,
            "ended": ended,
            "finish_reason": random.choice(("stop", "length")),
            "pages": random.randrange(3),
            "worker": random.randrange(2),
        }


def synthesize(
    seed: int, steps: int = 40, *, finished: bool = True, resumes: bool = True, roots: bool = True
) -> list[Event]:
    """The events of a made-up search of so many steps."""
    search = Growth(Random(seed))
    task = {"name": "countdown", "prompt": "Numbers: 3 7 8 25. Target: 92.\n", "oracle": False}
    task |= {"stop": ["\n"], "max_tokens": 24, "max_depth": 8}
    fields: Event = {"schema": 1, "started": "2026-01-31T12:00:00Z", "algorithm": "mcts", "options": {"in_flight": 4}}
    fields |= {"budget": {"tokens": 4096}, "seed": seed, "task": task}
    search.tell("search", **fields)
    search.events[0]["time"] = search.clock = 0.0
    search.tell("root", node=0, tokens=[5, 6, 7], ended=False, reward=None)
    search.depth[0] = 0
    for _ in range(steps):
        chance = search.random.random()
        if chance < 0.02 and resumes:
            search.tell("resumed")
        elif chance < 0.03 and roots:
            search.depth[len(search.depth)] = 0
            search.tell("root", node=len(search.depth) - 1, tokens=[5, 9], ended=False, reward=None)
        elif chance < 0.06:
            search.tell(
                "release", node=search.random.choice(sorted(search.depth)), subtree=search.random.random() < 0.5
            )
        elif chance < 0.07:
            search.tell("root_moved", node=search.random.choice(sorted(search.depth)))
        elif search.flying and (len(search.flying) >= 4 or chance < 0.5):
            search.land()
        else:
            search.expand()
    if finished:
        cost = {"tokens": 900, "expansions": search.calls, "seconds": search.clock, "nodes": len(search.depth)}
        result = {"algorithm": "mcts", "task": "countdown", "seed": seed, "solved": False, "reward": 0.25}
        search.tell("result", **result, text="8*3=24\n", answer=None, stop_reason="tokens", **cost)
    return search.events


def dump(events: list[Event]) -> bytes:
    return b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)


def write_trace(path: Path, events: list[Event]) -> Path:
    path.write_bytes(dump(events))
    return path


@st.composite
def traces(draw: st.DrawFn, most: int = 60) -> list[Event]:
    """Events of made-up searches, finished or not."""
    seed, steps = draw(st.integers(0, 2**16)), draw(st.integers(0, most))
    return synthesize(seed, steps, finished=draw(st.booleans()))

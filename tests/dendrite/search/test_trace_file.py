from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import DendriteError, TraceError
from dendrite.search.trace_file import read_trace
from dendrite.search.trace_tree import TraceTree
from tests.dendrite.search.traces import Event, dump, synthesize, traces, write_trace

HEADER: Event = {
    "event": "search",
    "time": 0.0,
    "schema": 1,
    "started": "2026-01-31T12:00:00Z",
    "algorithm": "mcts",
    "options": {},
    "budget": {"tokens": 64},
    "seed": 7,
    "task": {"name": "t", "prompt": "p", "oracle": False, "stop": ["\n"], "max_tokens": 8, "max_depth": 4},
}
ROOT: Event = {"event": "root", "time": 0.1, "node": 0, "tokens": [1, 2], "ended": False, "reward": None}


def expand(call: int, node: int) -> Event:
    fields = {"n": 2, "max_tokens": 8, "temperature": 0.8, "seed": 1}
    return {"event": "expand", "time": 0.2, "call": call, "node": node, **fields}


def child(node: int, **fields: Any) -> Event:
    return {"node": node, "text": f"t{node}", "tokens": [node], "logprobs": [-1.0], **fields}


def children(call: int, node: int, *kids: Event) -> Event:
    return {"event": "children", "time": 0.3, "call": call, "node": node, "batch": 1, "children": list(kids)}


def read(tmp_path: Path, *events: Event) -> TraceTree:
    return read_trace(write_trace(tmp_path / "trace.jsonl", list(events)))


@pytest.fixture
def small(tmp_path: Path) -> TraceTree:
    """0 over 1 and 2, 1 over 3: two visits below 1, one of 2, whose KV is then given up."""
    return read(
        tmp_path,
        HEADER,
        ROOT,
        expand(0, 0),
        children(
            0, 0, child(1, logprobs=[math.log(0.6)], value=0.5, worker=1, pages=2), child(2, logprobs=[math.log(0.2)])
        ),
        {"event": "backup", "time": 0.4, "node": 1, "value": 0.5},
        expand(1, 1),
        {"event": "backup", "time": 0.5, "node": 2, "value": 0.25},
        children(1, 1, child(3, reward=1.0, ended=True, finish_reason="stop")),
        {"event": "backup", "time": 0.6, "node": 3, "value": 1.0},
        {"event": "release", "time": 0.7, "node": 1, "subtree": True},
        {"event": "root_moved", "time": 0.8, "node": 1},
    )


def test_visits_and_means_count_for_all_ancestors(small: TraceTree) -> None:
    assert {place: node.visits for place, node in small.nodes.items()} == {0: 3, 1: 2, 2: 1, 3: 1}
    assert small.nodes[0].mean == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    assert small.nodes[1].mean == pytest.approx(0.75)
    assert small.nodes[2].mean == 0.25


def test_priors_are_among_siblings(small: TraceTree) -> None:
    assert small.nodes[1].prior == pytest.approx(0.75)
    assert small.nodes[2].prior == pytest.approx(0.25)
    assert small.nodes[3].prior == 1.0
    assert small.nodes[0].prior is None


def test_a_node_tells_where_it_came_from(small: TraceTree) -> None:
    node = small.nodes[1]
    assert (node.parent, node.depth, node.children, node.call, node.batch, node.time) == (0, 1, (3,), 0, 1, 0.3)
    assert (node.worker, node.pages, node.value, node.ended) == (1, 2, 0.5, False)
    assert small.nodes[3].solved
    assert not node.solved


def test_release_of_a_subtree_takes_what_is_below(small: TraceTree) -> None:
    assert {place for place, node in small.nodes.items() if node.released} == {1, 3}
    assert small.root == 1


def test_release_of_a_node_leaves_what_is_below_and_what_comes_later(tmp_path: Path) -> None:
    release = {"event": "release", "time": 0.4, "node": 1, "subtree": False}
    trace = read(
        tmp_path, HEADER, ROOT, expand(0, 0), children(0, 0, child(1)), expand(1, 1), release, children(1, 1, child(2))
    )
    assert [node.released for node in trace.nodes.values()] == [False, True, False]


def test_path_and_text(small: TraceTree) -> None:
    assert [node.id for node in small.path(3)] == [0, 1, 3]
    assert small.text(3) == "t1t3"
    assert small.text(0) == ""
    with pytest.raises(KeyError):
        small.path(9)


def test_unknown_events_and_fields_are_skipped(tmp_path: Path) -> None:
    news = {"event": "weather", "time": "sunny"}
    trace = read(tmp_path, {**HEADER, "mood": 1}, news, {**ROOT, "smell": [1]})
    assert [event.event for event in trace.events] == ["search", "root"]


def test_a_result_keeps_fields_that_are_new(tmp_path: Path) -> None:
    result = {"event": "result", "time": 1.0, "solved": True, "reward": 1.0, "text": "x", "stop_reason": "solved"}
    trace = read(tmp_path, HEADER, ROOT, {**result, "cache_hits": 3})
    assert trace.result is not None
    assert trace.result.solved
    assert trace.result.model_dump()["cache_hits"] == 3


def test_what_was_in_flight_returns_after_resumption(tmp_path: Path) -> None:
    again = {"event": "resumed", "time": 0.5}
    trace = read(tmp_path, HEADER, ROOT, expand(0, 0), again, children(0, 0, child(1)))
    assert list(trace.nodes) == [0, 1]


def test_a_search_of_several_prompts_has_several_roots(tmp_path: Path) -> None:
    second = {**ROOT, "node": 2, "tokens": [8, 9]}
    trace = read(
        tmp_path, HEADER, ROOT, expand(0, 0), children(0, 0, child(1)), second, expand(1, 2), children(1, 2, child(3))
    )
    assert [root.id for root in trace.roots] == [0, 2]
    assert [node.tokens for node in trace.path(3)] == [(8, 9), (3,)]
    assert trace.nodes[3].prior == 1.0


def test_without_logprobs_there_is_no_prior(tmp_path: Path) -> None:
    trace = read(tmp_path, HEADER, ROOT, expand(0, 0), children(0, 0, child(1, logprobs=[]), child(2)))
    assert [node.prior for node in trace.nodes.values()] == [None, None, None]


@pytest.mark.parametrize("schema", [2, "1", None])
def test_another_schema_is_refused(tmp_path: Path, schema: object) -> None:
    with pytest.raises(TraceError, match=r"schema .* is not one that this version reads \(1\)"):
        read(tmp_path, {**HEADER, "schema": schema}, ROOT)


@pytest.mark.parametrize(
    ("events", "line", "reason"),
    [
        ([ROOT], 1, "the first event"),
        ([HEADER, HEADER], 2, "a second search"),
        ([HEADER, ROOT, ROOT], 3, "node 0 is there already"),
        ([HEADER, ROOT, expand(0, 4)], 3, "node 4 is not known"),
        ([HEADER, ROOT, expand(0, 0), expand(0, 0)], 4, "already in flight"),
        ([HEADER, ROOT, children(0, 0, child(1))], 3, "no call 0"),
        ([HEADER, ROOT, expand(0, 0), children(0, 0, child(1), child(1))], 4, "node 1 is there already"),
        ([HEADER, ROOT, expand(0, 0), children(0, 0, child(1, logprobs=[-1.0, -2.0]))], 4, "2 logprobs for 1 tokens"),
        ([HEADER, ROOT, expand(0, 0), children(0, 0, child(1, value=math.nan))], 4, "is not JSON"),
        ([HEADER, ROOT, {"event": "backup", "time": 0.1, "node": 3, "value": 1.0}], 3, "node 3 is not known"),
        ([HEADER, ROOT, {"event": "release", "time": 0.1, "node": 3}], 3, "node 3 is not known"),
        ([HEADER, ROOT, {"event": "backup", "time": 0.1, "node": 0}], 3, "value: Field required"),
        ([HEADER, {**ROOT, "time": -1.0}], 2, "time: "),
        ([HEADER, {"time": 1.0}], 2, "is not an event"),
    ],
)
def test_a_contradiction_names_its_line(tmp_path: Path, events: list[Event], line: int, reason: str) -> None:
    with pytest.raises(TraceError, match=reason) as caught:
        read(tmp_path, *events)
    assert caught.value.line == line
    assert caught.value.file.endswith("trace.jsonl")


def test_a_line_in_the_middle_may_not_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(dump([HEADER]) + b'{"event": "ro\n' + dump([ROOT]))
    with pytest.raises(TraceError, match="line 2: is not JSON"):
        read_trace(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DendriteError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(TraceError("f", 3, "why")))
    assert (error.file, error.line, error.reason, str(error)) == ("f", 3, "why", "f, line 3: why")


@settings(max_examples=60)
@given(traces(), st.data())
def test_a_trace_cut_at_any_byte_reads_as_a_prefix(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "trace.jsonl"
    content = dump(events)
    whole = read_trace(write_trace(path, events))
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    lines = _whole_lines(content, cut)
    if not lines:
        with pytest.raises(TraceError, match="no whole first line"):
            read_trace(path)
        return
    part = read_trace(path)
    assert part.events == whole.events[:lines]
    assert list(part.nodes) == list(whole.nodes)[: len(part.nodes)]
    assert all(part.nodes[place].tokens == whole.nodes[place].tokens for place in part.nodes)
    assert all(part.nodes[place].visits <= whole.nodes[place].visits for place in part.nodes)


def _whole_lines(content: bytes, cut: int) -> int:
    """How many lines lie before `cut`, whether or not the line break of the last does."""
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    return sum(1 for end in ends if end <= cut)


@settings(max_examples=40)
@given(traces())
def test_statistics_follow_from_the_events(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    path = write_trace(tmp_path_factory.mktemp("trace") / "trace.jsonl", events)
    trace = read_trace(path)
    backups = [(event["node"], event["value"]) for event in events if event["event"] == "backup"]
    for place, node in trace.nodes.items():
        below = [value for start, value in backups if place in {each.id for each in trace.path(start)}]
        assert node.visits == len(below)
        assert node.mean is None if not below else node.mean == pytest.approx(sum(below) / len(below))
        priors = [trace.nodes[kid].prior for kid in node.children]
        assert not priors or sum(prior or 0.0 for prior in priors) == pytest.approx(1.0)
    told = [json.loads(event.model_dump_json(by_alias=True, exclude_unset=True)) for event in trace.events]
    assert told == events


def test_made_up_traces_are_of_some_size() -> None:
    kinds = {event["event"] for seed in range(30) for event in synthesize(seed, 60)}
    assert kinds == {"search", "root", "expand", "children", "backup", "release", "root_moved", "resumed", "result"}

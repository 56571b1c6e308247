from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.search.exports import to_graphviz
from dendrite.search.trace_file import read_trace
from dendrite.search.trace_tree import TraceTree
from tests.dendrite.search.traces import Event, synthesize, traces, write_trace

STRING = r'"(?:[^"\\\0]|\\.)*"'
VALUE = rf"(?:{STRING}|[A-Za-z0-9.]+)"
ATTRIBUTES = rf"\[{'NAME=VALUE(?:, NAME=VALUE)*'.replace('NAME', '[a-z]+').replace('VALUE', VALUE)}\]"
STATEMENT = re.compile(rf"  (graph|node|edge|n\d+|n\d+ -> n\d+) {ATTRIBUTES};")


def trace_of(folder: Path, events: list[Event]) -> TraceTree:
    return read_trace(write_trace(folder / "trace.jsonl", events))


def statements(dot: str) -> list[str]:
    """The statements' subjects; fails where a line is not of DOT's grammar."""
    lines = dot.splitlines()
    assert lines[0] == "digraph search {"
    assert lines[-1] == "}"
    matches = [STATEMENT.fullmatch(line) for line in lines[1:-1]]
    assert all(matches), dot
    return [match.group(1) for match in matches if match]


@settings(max_examples=40)
@given(traces(), st.one_of(st.none(), st.integers(1, 60)))
def test_a_drawing_has_the_tops_and_the_edges_between_them(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], top: int | None
) -> None:
    trace = trace_of(tmp_path_factory.mktemp("dot"), events)
    drawn = statements(to_graphviz(trace, top=top))[3:]
    nodes = [int(each[1:]) for each in drawn if "->" not in each]
    assert len(nodes) == min(len(trace.nodes), top or len(trace.nodes))
    left_out = set(trace.nodes) - set(nodes)
    assert all(trace.nodes[one].visits >= trace.nodes[other].visits for one in nodes for other in left_out)
    # Every node but a root hangs from one that is drawn too.
    parents = [(trace.nodes[node].parent, node) for node in nodes]
    assert [each for each in drawn if "->" in each] == [f"n{one} -> n{two}" for one, two in parents if one is not None]


def test_text_is_escaped(tmp_path: Path) -> None:
    events = synthesize(3, 12)
    hostile = 'a "quoted" \\N back\\slash\\ &lt;b&gt; \0 end\n'
    children = [event for event in events if event["event"] == "children" and event["children"]]
    children[0]["children"][0]["text"] = hostile
    dot = to_graphviz(trace_of(tmp_path, events))
    statements(dot)
    assert r"a \"quoted\" \\N back\\slash\\ &amp;lt;b&amp;gt; �" in dot


def test_ends_are_coloured_by_what_they_earned(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, synthesize(1, 400))
    dot = to_graphviz(trace)
    for node in trace.nodes.values():
        line = next(line for line in dot.splitlines() if line.startswith(f"  n{node.id} ["))
        colour = "#ffffff"
        if node.ended:
            colour = {None: "#e8eaed", 1.0: "#cfead9"}.get(node.reward, "#f6dcd8")
        assert f'fillcolor="{colour}"' in line
        assert ("rounded" in line) == (not node.ended)
        assert ("dashed" in line) == node.released
    assert {node.reward for node in trace.nodes.values()} == {None, 0.0, 0.25, 1.0}


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="top=0"):
        to_graphviz(trace_of(tmp_path, synthesize(0, 3)), top=0)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's dot is not installed")
def test_graphviz_reads_it(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, synthesize(5, 60))
    done = subprocess.run(
        ["dot", "-Tjson"], input=to_graphviz(trace), capture_output=True, check=True, text=True, timeout=60
    )
    assert not done.stderr
    drawn = json.loads(done.stdout)
    assert len(drawn["objects"]) == len(trace.nodes)
    assert len(drawn["edges"]) == len(trace.nodes) - len(trace.roots)

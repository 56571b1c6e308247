"""A search that was killed at any byte of its trace ends as if nothing had happened, and pays for nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dendrite.config import SamplingParams
from dendrite.errors import InvalidArgument, TraceError
from dendrite.search import ALGORITHMS, Budget, SearchResult, run_search_async
from dendrite.search.backend import Branch, NodeRef
from dendrite.search.replay import replay
from dendrite.search.trace import Trace
from tests.dendrite.search.frontier import Distinct
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary, leaves
from tests.full_disk import full_disk

DEPTH = 4
VALUES = {"".join(f"{step}\n" for step in path): Random(path).random() for d in range(1, 5) for path in leaves(d)}
PUZZLE = Puzzle({leaf: 0.1 + 0.8 * Random(leaf).random() for leaf in leaves(DEPTH)})
BUDGET = Budget(tokens=150)


def world() -> Distinct:
    return Distinct(binary(DEPTH), VALUES)


async def run(path: Path, backend: TreeBackend, algorithm: str = "mcts", **settings: Any) -> SearchResult:
    return await run_search_async(PUZZLE, backend, algorithm, BUDGET, 5, trace=path, **settings)


def told(result: SearchResult) -> dict[str, Any]:
    return {**result.to_dict(), "seconds": 0.0}


def events(path: Path, *, cut: bool = False) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") or not cut]


async def test_a_trace_tells_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trace.jsonl"
    result = await run(path, world(), in_flight=2)
    lines = events(path)
    assert [line["event"] for line in lines[:3]] == ["search", "root", "expand"]
    header, root = lines[:2]
    assert (header["schema"], header["algorithm"], header["seed"]) == (1, "mcts", 5)
    assert header["options"]["in_flight"] == 2
    assert header["budget"] == {"tokens": 150}
    assert header["task"]["prompt"] == "?"
    assert root["tokens"] == [ord("?")]
    children = [child for line in lines if line["event"] == "children" for child in line["children"]]
    assert [child["node"] for child in children] == list(range(1, len(children) + 1))
    assert sum(len(child["tokens"]) for child in children) == result.tokens
    assert sum(line["event"] == "backup" for line in lines) >= result.nodes - 1
    assert lines[-1] == {"event": "result", "time": lines[-1]["time"], **result.to_dict()}
    times = [line["time"] for line in lines]
    assert times == sorted(times)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), in_flight=st.sampled_from([1, 3]), algorithm=st.sampled_from(list(ALGORITHMS)))
async def test_a_search_cut_anywhere_is_taken_up(cut: float, in_flight: int, algorithm: str, tmp_path: Path) -> None:
    options = {"in_flight": in_flight} if "in_flight" in ALGORITHMS[algorithm].options_type.model_fields else {}
    path = tmp_path / "trace.jsonl"
    whole = world()
    expected = await run(path, whole, algorithm, ordered=True, **options)
    full = path.read_bytes()
    path.write_bytes(full[: int(cut * len(full))])
    landed = {event["call"] for event in events(path, cut=True) if event["event"] == "children"}
    again = world()
    assert told(await run(path, again, algorithm, resume=True, ordered=True, **options)) == told(expected)
    assert again.held == []
    assert tree(path) == tree_of(full)
    assert len(again.calls) == len(whole.calls) - len(landed), "no expansion is made twice"
    finished = await run(path, TreeBackend({}), algorithm, resume=True, ordered=True, **options)
    assert told(finished) == told(expected), "there is nothing left to do"


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
async def test_a_parallel_search_is_taken_up_whatever_the_order(cut: float, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    expected = await run(path, world(), in_flight=5)
    full = path.read_bytes()
    path.write_bytes(full[: int(cut * len(full))])
    batches = Counter(event["batch"] for event in events(path, cut=True) if event["event"] == "children")
    sizes = {event["batch"]: event["of"] for event in events(path, cut=True) if event["event"] == "children"}
    kept = sum(count for batch, count in batches.items() if count == sizes[batch])
    again = world()
    result = await run(path, again, resume=True, in_flight=5)
    assert result.stop_reason == expected.stop_reason
    assert tree(path)[:kept] == tree_of(full)[:kept]
    assert again.held == []


def tree(path: Path) -> list[Any]:
    return tree_of(path.read_bytes())


def tree_of(data: bytes) -> list[Any]:
    """The thoughts, whatever came between."""
    lines = [json.loads(line) for line in data.splitlines()]
    return [(line["call"], line["node"], line["children"]) for line in lines if line["event"] == "children"]


async def test_a_resumed_search_rebuilds_only_what_it_expands(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    await run(path, world(), in_flight=1)
    lines = path.read_bytes().splitlines(keepends=True)
    cut = [at for at, line in enumerate(lines) if b'"event":"children"' in line][5]
    path.write_bytes(b"".join(lines[: cut + 1]))
    again = world()
    await run(path, again, resume=True, in_flight=1)
    assert len(again.prefilled) == len(set(again.prefilled)), "nothing is rebuilt twice"
    rebuilt = {text.removeprefix("?") for text in again.prefilled}
    assert rebuilt <= {text for text, _, _ in again.calls}
    assert all(text.startswith("?") for text in again.prefilled)
    kinds = [line["event"] for line in events(path)]
    assert kinds.count("resumed") == kinds.count("search") == kinds.count("root") == kinds.count("result") == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"budget": Budget(tokens=151)}, "budget"),
        ({"seed": 6}, "seed"),
        ({"algorithm": "beam"}, "algorithm"),
        ({"in_flight": 3}, "options"),
        ({"values": "logprob"}, "values"),
        ({"task": Puzzle({}, name="another")}, "task"),
    ],
)
async def test_another_search_is_not_taken_up(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    await run(path, world())
    before = path.read_bytes()
    arguments = {"task": PUZZLE, "algorithm": "mcts", "budget": BUDGET, "seed": 5, **changes}
    with pytest.raises(TraceError, match=field):
        await run_search_async(backend=world(), trace=path, resume=True, **arguments)
    assert path.read_bytes() == before, "a trace that is refused is left as it is"


async def test_a_trace_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    await run(path, world())
    whole = path.read_text()
    path.write_text(whole.replace('"n":1', '"n":2'))
    with pytest.raises(TraceError, match="expansion 0 has n=2, not 1: this is the record of another search"):
        await run(path, world(), resume=True)
    path.write_text("".join(line for line in whole.splitlines(keepends=True) if '"event":"expand"' not in line))
    with pytest.raises(TraceError, match="has no expansion 0: this is the record of another search"):
        await run(path, world(), resume=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"event":"root"}\n', "must begin"),
        ('{"event":"search","schema":99}\n', "schema"),
        ("no\n", "not JSON"),
        ("[]\n", "not an object"),
        ('{"event":"search","schema":1}\n{"event":"expand"}\n', "line 2"),
    ],
)
async def test_a_file_that_is_no_trace_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=reason):
        await run(path, world(), resume=True)
    assert path.read_text() == text


async def test_resuming_needs_a_trace_and_a_trace_a_place(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="resume"):
        await run_search_async(PUZZLE, world(), budget=BUDGET, resume=True)
    with pytest.raises(InvalidArgument, match="trace"):
        await run(tmp_path, world())
    with pytest.raises(TraceError, match="No such file"):
        Trace(tmp_path / "none.jsonl", replay_only=True)


async def test_a_failed_expansion_is_tried_again_on_resuming(tmp_path: Path) -> None:
    class Broken(Distinct):
        async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
            if len(self.calls) == 6:
                raise RuntimeError("broken")
            return await super().expand(node, n, params)

    path = tmp_path / "trace.jsonl"
    with pytest.raises(RuntimeError, match="broken"):
        await run(path, Broken(binary(DEPTH), VALUES), in_flight=1)
    expected = await run(tmp_path / "other.jsonl", world(), in_flight=1)
    assert told(await run(path, world(), resume=True, in_flight=1)) == told(expected)


class TestReplay:
    @pytest.mark.parametrize("algorithm", list(ALGORITHMS))
    async def test_a_search_is_run_again_from_its_trace_alone(self, algorithm: str, tmp_path: Path) -> None:
        path = tmp_path / "trace.jsonl"
        expected = await run(path, world(), algorithm)
        before = path.read_bytes()
        replayed = await replay(path)
        assert told(replayed) == told(expected)
        assert path.read_bytes() == before

    async def test_one_that_was_killed_gives_what_it_had(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.jsonl"
        await run(path, world(), in_flight=1)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]))
        replayed = await replay(path)
        assert replayed.stop_reason == "interrupted"
        made = sum(len(event["children"]) for event in events(path) if event["event"] == "children")
        assert 1 < replayed.nodes <= made + 1

    @pytest.mark.parametrize("lines", [0, 1])
    async def test_one_without_a_prompt_is_refused(self, lines: int, tmp_path: Path) -> None:
        path = tmp_path / "trace.jsonl"
        await run(path, world(), in_flight=1)
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
        with pytest.raises(TraceError, match="before the prompt"):
            await replay(path)


async def test_a_full_disk_ends_the_search_with_whole_events_on_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    backend = world()
    with full_disk(2_000), pytest.raises(InvalidArgument, match=r"trace=.*trace\.jsonl.*cannot be written"):
        await run(path, backend, in_flight=1)
    assert backend.held == []
    assert path.stat().st_size <= 2_000
    assert [event["event"] for event in events(path)][:2] == ["search", "root"]
    expected = await run(tmp_path / "other.jsonl", world(), in_flight=1)
    assert told(await run(path, world(), resume=True, in_flight=1)) == told(expected)

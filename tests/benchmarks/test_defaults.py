"""The sweeps behind the defaults: every part runs, each default is among the values swept, and the tables show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import defaults, defaults_crossover, defaults_memory, defaults_sweeps, defaults_tables, readme, tables
from benchmarks.defaults_sweeps import Bench
from benchmarks.defaults_trees import grow_beams, grow_search, unused_room
from benchmarks.models import SHAPES
from dendrite import Engine, EngineConfig
from dendrite.config import checked
from dendrite.errors import InvalidArgument
from dendrite.model.decoder import Decoder
from dendrite.profiling.workloads import random_prompts
from dendrite.search import ALGORITHMS

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"
ON_CPU = [part for part in defaults.PARTS if part not in defaults.CUDA_ALONE]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["defaults", "--shape", "tiny", "--device", "cpu", "--quick", *arguments])
    return defaults.main()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one quick run writes, by part."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults_sweeps, "MAX_RUNNING", (128, 256))
        patch.setattr(defaults_sweeps, "MAX_BATCH_TOKENS", (512, 2048))
        patch.setattr(defaults_crossover, "BRANCHES", {"cpu": (2, 64)})
        patch.setattr(defaults_crossover, "SHARED", {"cpu": (16, 64, 1024)})
        patch.setattr(defaults_crossover, "_CPU_SECONDS", 0.001)
        assert run(patch, "--runs", "1", "--out", str(folder)) == 0
    found = [json.loads(path.read_text()) for path in folder.iterdir()]
    assert {path.name for path in folder.iterdir()} == {f"defaults-cpu-tiny-{part}-quick.json" for part in ON_CPU}
    return {result["raw"]["part"]: result for result in found}


@pytest.mark.parametrize("part", ON_CPU)
def test_each_default_is_among_the_values_swept(part: str, results: dict[str, dict[str, Any]]) -> None:
    raw, metrics = results[part]["raw"], results[part]["metrics"]
    assert set(raw["defaults"].values()) <= set(raw["values"])
    assert all(name.startswith(f"{part}.") for name in metrics)
    assert all(value > 0 for name, value in metrics.items() if not name.endswith("_unused"))
    assert len(raw["runs"]) > len(raw["values"]) - 1


def test_the_defaults_are_those_that_ship(results: dict[str, dict[str, Any]]) -> None:
    config = EngineConfig().model_dump()
    for part in ("page_size", "max_running", "max_batch_tokens"):
        assert results[part]["raw"]["defaults"] == {"default": config[part]}
    of_searches = results["in_flight"]["raw"]["defaults"]
    assert of_searches["mcts"] == ALGORITHMS["mcts"].options_type.model_fields["in_flight"].default
    assert len(of_searches) > 1
    assert config["memory_fraction"] in defaults_memory.FRACTIONS


@pytest.mark.parametrize("name", ["page_size", "max_running", "max_batch_tokens"])
def test_the_values_are_valid_settings(name: str) -> None:
    values = getattr(defaults_sweeps, {"page_size": "PAGE_SIZES"}.get(name, name.upper()))
    for value in values:
        assert getattr(checked(EngineConfig, {name: value}), name) == value


def test_what_is_picked_at_the_crossover(results: dict[str, dict[str, Any]]) -> None:
    metrics, picked = results["crossover"]["metrics"], results["crossover"]["raw"]["picked"]
    assert picked["b2.p16"] == "flat", "one page is not worth a pass of its own"
    assert picked["b64.p1024"] == "tree"
    assert set(picked.values()) == {"tree", "flat"}
    times = {name: (metrics[f"crossover.{name}.tree_us"], metrics[f"crossover.{name}.flat_us"]) for name in picked}
    losses = [both[picked[name] == "flat"] / min(both) for name, both in times.items()]
    assert metrics["crossover.worst_loss"] == pytest.approx(max(losses), rel=1e-4)
    assert metrics["crossover.right_share"] == pytest.approx(sum(loss <= 1.05 for loss in losses) / len(losses))


def test_larger_pages_leave_more_room_unused(results: dict[str, dict[str, Any]]) -> None:
    metrics = results["page_size"]["metrics"]
    for tree in ("search_unused", "beams_unused"):
        unused = [metrics[f"page_size.v{size}.{tree}"] for size in defaults_sweeps.PAGE_SIZES]
        assert unused == sorted(unused)
        assert all(0 < share < 1 for share in unused)


@pytest.mark.parametrize("grow", [grow_search, grow_beams])
def test_unused_room_is_of_all_nodes_that_hold_pages(grow: Any) -> None:
    config = EngineConfig(device="cpu", kv_tokens=8192, debug_checks=True)
    with Engine(Decoder.random(SHAPES["tiny"]), config=config) as engine:
        nodes = grow(engine, random_prompts(257), defaults.QUICK)
        tokens, stats = sum(len(node.tokens) for node in nodes), engine.stats()
        assert unused_room(engine, nodes) == pytest.approx(1 - tokens / (stats.pages_held * stats.page_tokens))
        with pytest.raises(RuntimeError, match="not all by the nodes"):
            unused_room(engine, nodes[1:])
        for node in nodes:
            node.release()
        assert engine.stats().pages_held == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "0"], "--runs"),
        (["--parts", "page_sizes"], "page_sizes is none of"),
        (["--parts", "page_size,memory_fraction"], "memory_fraction does not apply to --device cpu"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_memory_fraction_is_refused_on_the_cpu() -> None:
    with pytest.raises(InvalidArgument, match="device"):
        defaults_memory.memory_fraction(Bench(Decoder.random(SHAPES["tiny"]), defaults.QUICK, 1))


def test_a_part_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(bench: Bench) -> defaults_sweeps.Sweep:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(defaults, "PARTS", {**defaults.PARTS, "page_size": fail})
    assert run(monkeypatch, "--runs", "1", "--parts", "page_size,in_flight", "--out", str(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["defaults-cpu-tiny-in_flight-quick.json"]
    assert "page_size failed: RuntimeError: out of luck" in capsys.readouterr().err


@pytest.mark.parametrize("part", ON_CPU)
def test_a_table_shows_every_value(
    part: str, results: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    block = defaults_tables.DEFAULT_BLOCKS[f"default_{part}"]
    assert block() == defaults_tables.NOT_MEASURED
    (tmp_path / f"defaults-cpu-tiny-{part}.json").write_text(json.dumps(results[part]))
    text = block()
    assert text.startswith("**tiny on cpu**")
    assert results[part]["command"] in text
    if part == "crossover":
        assert text.count(" × ") == len(results[part]["raw"]["picked"]) + 1
    else:
        rows = [line for line in text.splitlines() if line.startswith("|")][2:]
        assert len(rows) == len(results[part]["raw"]["values"])
        assert sum("**" in row for row in rows) == len(set(results[part]["raw"]["defaults"].values()))


def test_the_page_has_every_block() -> None:
    known = {**readme.BLOCKS, **defaults_tables.DEFAULT_BLOCKS}
    text = PAGE.read_text()
    assert set(defaults_tables.DEFAULT_BLOCKS) <= set(readme.block_names(text)) <= set(known)
    assert all(f"default_{part}" in defaults_tables.DEFAULT_BLOCKS for part in defaults.PARTS)
    filled = readme.refresh(text, known)
    assert "the planner shares" in filled
    assert f"**{ALGORITHMS['mcts'].options_type.model_fields['in_flight'].default}** (`mcts`)" in filled
    assert readme.refresh(filled, known) == filled


def test_the_sizes_hold_what_the_parts_need() -> None:
    for sizes in (defaults.DESIGN, defaults.SMALL, defaults.QUICK):
        assert sizes.w3_in_flight == defaults_sweeps.IN_FLIGHT
        assert sizes.w5_leaves % sizes.w5_kept == 0

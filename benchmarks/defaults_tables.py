"""The tables of `docs/defaults.md`, from the files that `benchmarks.defaults` has written.

There is a table for each model and machine that a part was measured on. Where it was measured on none, the block says
so: a default can be documented before its figures are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.defaults_sweeps import MAX_RUNNING
from benchmarks.tables import RESULTS, figure, load, short, table, with_source
from dendrite.search.mcts_options import MctsOptions

_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "page_size": {
        "W2.n16.tok_s": "16 branches, tokens/s",
        "W2.n64.tok_s": "64 branches, tokens/s",
        "W2.n256.tok_s": "256 branches, tokens/s",
        "W3.f16.ms_per_expansion": "ms an expansion, 16 in flight",
        "search_unused": "unused room, search tree",
        "beams_unused": "unused room, beams",
    },
    "memory_fraction": {
        "kv_tokens": "KV, tokens",
        "pool_gib": "pool, GiB",
        "beside_gib": "beside weights and pool, GiB",
        "free_gib": "never used, GiB",
        "fits": "fits",
    },
    "in_flight": {"ms_per_expansion": "ms an expansion", "speedup": "gain"},
    "max_running": {"tok_s": f"{max(MAX_RUNNING)} branches, tokens/s", "ms_per_token": "ms between tokens of one"},
    "max_batch_tokens": {"prefill_tok_s": "prompt, tokens/s", "longest_wait_ms": "longest wait of a branch, ms"},
}
_FORMATS: Mapping[str, Callable[[float], str]] = {
    "search_unused": lambda share: f"{share:.1%}",
    "beams_unused": lambda share: f"{share:.1%}",
    "fits": lambda fits: "yes" if fits else "no",
    "speedup": lambda gain: f"{gain:.1f}×",
}
NOT_MEASURED = "*Not measured yet.*"


def sweep_block(part: str) -> str:
    """A row for each value, the default marked; a table for each model and machine."""
    return _each(part, partial(_sweep_table, part))


def crossover_block() -> str:
    """A row for each point: both ways' time, which is picked, and what that costs."""
    return _each("crossover", _crossover_table)


def planner_block() -> str:
    """How often the planner is right on the cases of `benchmarks.attention`, whose prefixes and batches are larger."""
    result = load("attention-h100-tree")
    points = {name: each for name, each in result["raw"].items() if isinstance(each, dict) and "picked" in each}
    losses = []
    for each in points.values():
        times = {way: each[f"{way}_us"]["median"] for way in ("tree", "flat")}
        losses.append(times[each["picked"]] / min(times.values()))
    right, shared = sum(loss <= 1.05 for loss in losses), sum(each["picked"] == "tree" for each in points.values())
    text = (
        f"Of the {len(points)} cases of [Measured](measured.md#attention)'s run, up to 256 branches of 32,768 shared "
        f"tokens, the planner shares {shared}; its choice is the faster one, or within 5 % of it, in {right}, and at "
        f"worst takes {max(losses):.3f} times as long."
    )
    return with_source(text, result)


def in_flight_cost_block() -> str:
    """What MCTS, counting visits as it does by default, generates for a problem by the number in flight."""
    result = load("parallel_search-cpu-countdown")
    points = {point["search"]: point for point in result["raw"]["points"]}
    rows = []
    for count in sorted({point["options"]["in_flight"] for point in points.values()}):
        label = f"**{count}** (`mcts`)" if count == MctsOptions().in_flight else str(count)
        tokens = [short(points[f"{setting}.wu_uct.f{count}"]["tokens"]) for setting in ("widening", "fixed")]
        rows.append((label, *tokens, short(result["metrics"][f"parallel.f{count}.expansions_s"])))
    header = ("`in_flight`", "tokens a problem, widening", "the same, fixed fan-out", "expansions/s")
    return with_source(table(header, rows), result)


def _each(part: str, as_table: Callable[[dict[str, Any]], str]) -> str:
    results = [load(path.stem) for path in sorted(RESULTS.glob(f"defaults-*-{part}.json"))]
    blocks = []
    for result in results:
        title = f"**{result['raw']['shape']} on {result['raw']['device']}**"
        blocks.append(f"{title}\n\n{with_source(as_table(result), result)}")
    return "\n\n".join(blocks) or NOT_MEASURED


def _sweep_table(part: str, result: dict[str, Any]) -> str:
    metrics, raw = result["metrics"], result["raw"]
    labels = {value: f"{part}.v{value if value >= 1 else round(100 * value)}" for value in raw["values"]}
    columns = {
        name: title
        for name, title in _COLUMNS[part].items()
        if any(f"{label}.{name}" in metrics for label in labels.values())
    }
    rows = []
    for value, label in labels.items():
        whose = ", ".join(
            name if name == "default" else f"`{name}`" for name, own in raw["defaults"].items() if own == value
        )
        cells = [_cell(name, metrics.get(f"{label}.{name}")) for name in columns]
        rows.append((f"**{value:,}** ({whose})" if whose else f"{value:,}", *cells))
    return table((f"`{part}`", *columns.values()), rows)


def _cell(name: str, value: float | None) -> str:
    return _FORMATS[name](value) if value is not None and name in _FORMATS else figure(value)


def _crossover_table(result: dict[str, Any]) -> str:
    metrics, picked = result["metrics"], result["raw"]["picked"]
    rows = []
    for branches in result["raw"]["branches"]:
        for shared in result["raw"]["values"]:
            name = f"b{branches}.p{shared}"
            times = {way: metrics[f"crossover.{name}.{way}_us"] for way in ("tree", "flat")}
            best = min(times.values())
            way = "shared" if picked[name] == "tree" else "by row"
            cells = [short(times["tree"]), short(times["flat"]), way, f"{times[picked[name]] / best:.2f}"]
            rows.append((f"{branches} × {shared:,}", *cells))
    header = ("branches × shared tokens", "shared, µs", "by row, µs", "picked", "picked ÷ faster")
    share, worst = metrics["crossover.right_share"], metrics["crossover.worst_loss"]
    note = (
        f"What is picked is the faster, or within 5 % of it, at {share:.0%} of the points; at the worst it takes "
        f"{worst:.2f} times as long."
    )
    return f"{table(header, rows)}\n\n{note}"


DEFAULT_BLOCKS: dict[str, Callable[[], str]] = {
    **{f"default_{part}": partial(sweep_block, part) for part in _COLUMNS},
    "default_crossover": crossover_block,
    "default_planner": planner_block,
    "default_in_flight_cost": in_flight_cost_block,
}

"""Tree attention beside flat attention, ours and FlashInfer's, for rows that share one prefix.

A row has a prefix that all rows share and 64 tokens of its own. Times are of one layer, merge included, by replaying
a CUDA graph that goes round enough layers for the L2 cache not to hold them all. "Flat" is our kernel with a plan that
shares nothing; "flashinfer" is its paged decode on tensor cores, where installed.

Run it with `python -m benchmarks.attention [--full]`; `--sweep` tries tile sizes instead, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import Spread, spread, write_result
from benchmarks.machine import hardware_name
from dendrite.attention.tree import TreeAttention, default_tile
from dendrite.attention.tree_cost import CostModel
from dendrite.kernels.attention import TileConfig

SUFFIX = 64
PAGE = 16
HORIZON = 32
L2_BYTES = 128 << 20
"""KV that a measurement goes round, more than any L2 cache holds."""
FLAT = CostModel(least_gain_us=math.inf)


@dataclass(frozen=True)
class Heads:
    """A model's attention shape; `suffix` marks its metrics."""

    query: int
    kv: int
    dim: int
    suffix: str

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of a token in one layer, bfloat16."""
        return 4 * self.kv * self.dim


SHAPES = (Heads(32, 4, 64, ""), Heads(32, 8, 128, ".h8x128"))
QUICK = tuple((batch, prefix) for batch in (8, 64, 256) for prefix in (64, 256, 512, 4096, 32768))
FULL = tuple(
    (batch, prefix) for batch in (8, 16, 32, 64, 128, 256, 512) for prefix in (64, 256, 512, 1024, 4096, 8192, 32768)
)


class Case:
    """One batch: its storage, page tables and queries."""

    def __init__(self, heads: Heads, batch: int, prefix: int) -> None:
        self.heads, self.batch, self.prefix = heads, batch, prefix
        shared, own = prefix // PAGE, -(-(SUFFIX + HORIZON) // PAGE)
        ids = np.random.default_rng(0).permutation(shared + batch * own) + 1
        self.tables = [np.concatenate((ids[:shared], ids[shared + row * own :][:own])) for row in range(batch)]
        self.lengths = np.full(batch, prefix + SUFFIX)
        layer_bytes = (len(ids) + 1) * PAGE * heads.token_bytes
        self.layers = max(2, min(16, -(-L2_BYTES // layer_bytes)))
        shape = (self.layers, len(ids) + 1, 2, PAGE, heads.kv, heads.dim)
        self.storage = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        self.query = torch.randn(batch, heads.query, heads.dim, dtype=torch.bfloat16, device="cuda")
        self.out = torch.empty_like(self.query)

    @property
    def flops(self) -> float:
        """Of one layer: two products of every query with every key of its row."""
        return 4.0 * float(self.lengths.sum()) * self.heads.query * self.heads.dim

    def attention(self, cost: CostModel | None = None, tile: TileConfig | None = None) -> TreeAttention:
        """Tree attention over the storage, its lengths set."""
        sm_count = torch.cuda.get_device_properties(0).multi_processor_count
        entries = sum(map(len, self.tables))
        made = TreeAttention(
            self.storage, self.heads.query, self.batch, entries, sm_count=sm_count, pdl=True, cost=cost, tile=tile
        )
        made.lengths.copy_(torch.from_numpy(self.lengths))
        return made

    def step(self, attention: TreeAttention) -> Callable[[int], None]:
        """What runs one layer."""
        return lambda layer: attention.decode(layer, self.query, self.out, self.batch)


def layer_us(step: Callable[[int], None], layers: int, budget_ms: float = 20.0) -> list[float]:
    """Microseconds of `step(layer)`, of five measurements or more, from replays of a graph of several layers."""
    calls = layers * -(-8 // layers)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            step(call % layers)
    graph.replay()
    first = _timed_us(graph, 1)
    replays = max(1, int(budget_ms * 1000 / 5 / first))
    return [_timed_us(graph, replays) / calls for _ in range(5)]


def _timed_us(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000 / replays


def flashinfer_step(case: Case) -> Callable[[int], None] | None:
    """FlashInfer's flat decode of the same batch, or None where it is not installed."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    import flashinfer

    sizes = -(-case.lengths // PAGE)
    start = np.concatenate(([0], np.cumsum(sizes)))
    used = np.concatenate([table[:size] for table, size in zip(case.tables, sizes, strict=True)])
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(256 << 20, dtype=torch.uint8, device="cuda"), "NHD", use_tensor_cores=True
    )
    heads = case.heads
    wrapper.plan(
        torch.from_numpy(start).int(),
        torch.from_numpy(used).int().cuda(),
        torch.from_numpy(case.lengths - (sizes - 1) * PAGE).int(),
        heads.query,
        heads.kv,
        heads.dim,
        PAGE,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    return lambda layer: wrapper.run(case.query, case.storage[layer], out=case.out)


def planner_us(case: Case, attention: TreeAttention) -> list[float]:
    """Microseconds of the host for a plan and its upload."""
    runs = []
    for _ in range(7):
        begin = time.perf_counter()
        attention.plan(case.tables, case.lengths, HORIZON)
        runs.append((time.perf_counter() - begin) * 1e6)
    return runs[2:]


def rivals(case: Case) -> tuple[str, TreeAttention, TreeAttention]:
    """The kind of plan that the planner picks for a case; attention that always shares, and that never does."""
    picked = case.attention().plan(case.tables, case.lengths, HORIZON).kind
    always = replace(CostModel.of(case.heads.dim, case.batch, case.prefix + SUFFIX), least_gain_us=-math.inf)
    return picked, case.attention(always), case.attention(FLAT)


def measure(heads: Heads, batch: int, prefix: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of one case, and what they were made from."""
    case = Case(heads, batch, prefix)
    picked, tree, flat = rivals(case)
    plan = tree.plan(case.tables, case.lengths, HORIZON)
    flat.plan(case.tables, case.lengths, HORIZON)
    spreads: dict[str, Spread] = {
        "tree_us": spread(layer_us(case.step(tree), case.layers)),
        "flat_us": spread(layer_us(case.step(flat), case.layers)),
        "plan_us": spread(planner_us(case, tree)),
    }
    peer = flashinfer_step(case)
    if peer is not None:
        spreads["flashinfer_us"] = spread(layer_us(peer, case.layers))
    best = spreads["tree_us"]["median"]
    metrics = {name: found["median"] for name, found in spreads.items()}
    metrics["tree_gb_s"] = plan.tokens * heads.token_bytes / best / 1e3
    metrics["tree_tflop_s"] = case.flops / best / 1e6
    name = f"attention.b{batch}.p{prefix}"
    raw = {"picked": picked, "items": len(plan.items), "splits": int(plan.splits.max()), **spreads}
    return {f"{name}.{key}{heads.suffix}": value for key, value in metrics.items()}, {name + heads.suffix: raw}


def crossovers(metrics: dict[str, float], cases: tuple[tuple[int, int], ...]) -> dict[str, dict[str, int | None]]:
    """By shape and batch, the shortest prefix measured from which on tree attention is the faster; None for never."""
    found: dict[str, dict[str, int | None]] = {}
    for heads in SHAPES:
        by_batch = found[f"{heads.query}/{heads.kv}x{heads.dim}"] = {}
        for batch in sorted({batch for batch, _ in cases}):
            shortest = None
            for prefix in sorted((prefix for other, prefix in cases if other == batch), reverse=True):
                name = f"attention.b{batch}.p{prefix}"
                if metrics[f"{name}.tree_us{heads.suffix}"] > metrics[f"{name}.flat_us{heads.suffix}"]:
                    break
                shortest = prefix
            by_batch[str(batch)] = shortest
    return found


def report(cases: tuple[tuple[int, int], ...]) -> None:
    """Measure all cases, print a table and write the result."""
    metrics: dict[str, float] = {}
    raw: dict[str, Any] = {"page_size": PAGE, "suffix": SUFFIX}
    print(f"{'case':36} {'tree us':>9} {'flat us':>9} {'flashinfer':>10} {'plan us':>8} {'GB/s':>7} {'TFLOP/s':>8}")
    for heads in SHAPES:
        for batch, prefix in ((1, 576), *cases):
            found, details = measure(heads, batch, prefix)
            metrics |= found
            raw |= details
            row = [found.get(f"attention.b{batch}.p{prefix}.{key}{heads.suffix}", math.nan) for key in COLUMNS]
            tree, flat, peer, plan, rate, flops = row
            label = f"b{batch} p{prefix} {heads.query}/{heads.kv}x{heads.dim}"
            print(f"{label:36} {tree:9.1f} {flat:9.1f} {peer:10.1f} {plan:8.0f} {rate:7.0f} {flops:8.0f}", flush=True)
            torch.cuda.empty_cache()
    raw["crossover"] = crossovers(metrics, cases)
    packages = ["triton"]
    if importlib.util.find_spec("flashinfer") is not None:
        packages.append("flashinfer-python")
    path = write_result(
        benchmark="attention",
        subject="tree",
        hardware=hardware_name(torch.device("cuda")),
        metrics=metrics,
        raw=raw,
        packages=packages,
    )
    print(f"written to {path}")


COLUMNS = ("tree_us", "flat_us", "flashinfer_us", "plan_us", "tree_gb_s", "tree_tflop_s")


SWEEP = ((SHAPES[0], 256, 4096), (SHAPES[0], 64, 4096), (SHAPES[0], 8, 4096), (SHAPES[0], 1, 576),
         (SHAPES[1], 256, 4096), (SHAPES[1], 64, 4096), (SHAPES[1], 8, 4096), (SHAPES[1], 1, 576))  # fmt: skip
LOW_TILES = tuple(
    TileConfig(16, small_n, small_n, warps, stages, stages)
    for small_n, warps, stages in ((32, 2, 3), (32, 4, 4), (64, 2, 3), (64, 4, 2), (64, 4, 3), (128, 4, 2), (64, 8, 3))
)
HIGH_TILES = tuple(
    TileConfig(block_m, block_n, 64, warps, stages, 3, registers)
    for block_m, block_n, warps, stages, registers in (
        (64, 64, 4, 2, None),
        (64, 64, 4, 3, None),
        (64, 64, 4, 3, 128),
        (64, 128, 4, 2, None),
        (128, 32, 4, 3, None),
        (128, 32, 4, 4, 168),
        (128, 64, 4, 2, None),
        (128, 64, 4, 3, None),
        (128, 64, 8, 2, 128),
        (128, 64, 8, 3, None),
        (128, 64, 8, 3, 128),
        (128, 128, 8, 2, None),
    )
)


def sweep() -> None:
    """Try tile sizes and slots a multiprocessor for the key cases, and print what each takes."""
    print(torch.cuda.get_device_name(), torch.__version__)
    shapes = [(heads, tile) for heads in SHAPES for tile in _tiles(heads, 1) + _tiles(heads, 64)]
    begin = time.perf_counter()
    try:
        with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("spawn")) as pool:
            for (heads, tile), error in zip(shapes, pool.map(_compile, shapes), strict=True):
                if error:
                    print(f"does not compile: {heads} {tile}: {error}")
    except BrokenProcessPool as broken:  # what is missing compiles below, one after the other
        print(f"compiling ahead failed: {broken}")
    print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)
    for heads, batch, prefix in SWEEP:
        case = Case(heads, batch, prefix)
        print(f"--- b{batch} p{prefix} {heads.query}/{heads.kv}x{heads.dim}", flush=True)
        rows = [row for tile in _tiles(heads, batch) for row in _try(case, CostModel(), tile)]
        rows.sort(key=lambda row: row[0])
        for tile in [row[1] for row in rows[:2]]:
            for slots in (1, 2, 3, 4, 6):
                rows += list(_try(case, CostModel(programs_per_sm=slots), tile))
        for us, tile, label in sorted(rows, key=lambda row: row[0])[:14]:
            print(f"{us:8.1f} us  {label:40} {tile}", flush=True)
        _breakdown(case)
        del case
        torch.cuda.empty_cache()


def _tiles(heads: Heads, batch: int) -> tuple[TileConfig, ...]:
    """Variants worth trying; larger heads spill where registers are capped, or where four warps hold 128 queries."""
    if batch == 1:
        return LOW_TILES
    if heads.dim == 64:
        return HIGH_TILES
    return tuple(
        tile
        for tile in HIGH_TILES
        if tile.registers is None and (tile.block_m * tile.block_n < 8192 or tile.warps == 8)
    )


def _try(case: Case, cost: CostModel, tile: TileConfig) -> Iterator[tuple[float, TileConfig, str]]:
    """Time one variant; nothing where it fails, which is printed."""
    try:
        attention = case.attention(cost, tile)
        plan = attention.plan(case.tables, case.lengths, HORIZON)
        runs = layer_us(case.step(attention), case.layers, budget_ms=10.0)
        label = f"slots {cost.programs_per_sm}, items {len(plan.items)}, splits {int(plan.splits.max())}"
        yield spread(runs)["median"], tile, label
    except Exception as error:  # whatever a variant dies of, the others go on
        print(f"failed: {tile}: {type(error).__name__}: {str(error)[:200]}", flush=True)


def _breakdown(case: Case) -> None:
    """Print the time of an empty launch and of each kernel."""
    attention = case.attention()
    attention.plan(case.tables, case.lengths * 0, HORIZON)
    empty = spread(layer_us(case.step(attention), case.layers, budget_ms=5.0))["median"]
    plan = attention.plan(case.tables, case.lengths, HORIZON)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for call in range(10):
            attention.decode(call % case.layers, case.query, case.out, case.batch)
        torch.cuda.synchronize()
    kernels = {event.key: event.device_time_total / event.count for event in profile.key_averages()}
    parts = ", ".join(f"{name} {us:.1f}" for name, us in kernels.items() if name.endswith("_kernel"))
    tile = default_tile(case.batch, case.heads.query // case.heads.kv, case.heads.dim)
    print(f"  default {tile}, items {len(plan.items)}: {parts}; empty launch {empty:.1f} us", flush=True)


def _compile(shape: tuple[Heads, TileConfig]) -> str:
    """Compile one variant in a process of its own, into Triton's cache on disk; the error, or nothing."""
    heads, tile = shape
    try:
        tables: list[npt.NDArray[Any]] = [np.array([1])]
        storage = torch.zeros(1, 2, 2, PAGE, heads.kv, heads.dim, dtype=torch.bfloat16, device="cuda")
        attention = TreeAttention(storage, heads.query, 1, 16, pdl=True, tile=tile)
        attention.plan(tables, [4])
        query = torch.zeros(1, heads.query, heads.dim, dtype=torch.bfloat16, device="cuda")
        attention.decode(0, query, torch.empty_like(query), 1)
        torch.cuda.synchronize()
    except Exception as error:  # the parent prints it
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tree attention beside flat attention.")
    parser.add_argument("--full", action="store_true", help="more batch sizes and prefixes")
    parser.add_argument("--sweep", action="store_true", help="try tile sizes, print what they take, write nothing")
    arguments = parser.parse_args()
    if arguments.sweep:
        sweep()
    else:
        report(FULL if arguments.full else QUICK)


if __name__ == "__main__":
    main()

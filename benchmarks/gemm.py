"""The products of 2 to 256 rows on the tensor cores, with the kernels that reduce them, beside cuBLAS.

For each product of a layer and each number of rows, the best of a sweep of launch configurations. Then a whole layer
without its attention, for which the best few of each product are tried in its place: what overlaps with its neighbours
decides there. Times are of CUDA graph replays over enough different weights that L2 serves none of them.

Run it with `python -m benchmarks.gemm [--shapes NAME ...] [--seconds N]`. It stops sweeping when the time is up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.common import write_result
from benchmarks.kernels import EPS, PRODUCTS, SHAPES, Bench, Report, Shape, copy_bandwidth, random_weights
from dendrite.kernels.gemm import linear, linear_partials, linear_swiglu
from dendrite.kernels.gemm_config import GemmConfig, Kind, choose
from dendrite.kernels.reduce import residual_norm, rope_append_partials, swiglu_partials

ROWS = (2, 4, 8, 16, 32, 64, 128, 256)
KINDS: dict[str, Kind] = {
    "qkv": "qkv",
    "output": "output",
    "gate_up": "gate_up",
    "down": "down",
    "lm_head": "linear",
}
MOST_SPLITS = 8
# block_m: block_n, block_k, warps, stages
TILES: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    16: ((64, 128, 4, 5), (64, 128, 4, 4), (64, 256, 4, 3), (128, 64, 4, 6), (128, 128, 8, 3)),
    32: ((64, 128, 4, 4), (64, 64, 4, 8), (128, 64, 4, 5), (128, 128, 8, 4)),
    64: ((64, 64, 4, 6), (64, 128, 4, 3), (128, 64, 4, 4), (128, 64, 8, 6), (128, 128, 8, 3)),
    128: ((64, 64, 4, 4), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 3)),
    256: ((64, 64, 4, 5), (128, 64, 8, 4)),
}


class GemmBench(Bench):
    """A layer's products and reductions over different weights."""

    def __init__(self, shape: Shape, rows: int, weights: dict[str, list[Tensor]]) -> None:
        super().__init__(shape, rows, weights)
        widest = max(size for name, (size, _) in shape.weights.items() if name != "lm_head")
        self.workspace = torch.empty(MOST_SPLITS * rows * widest, device="cuda")

    def gemm(self, product: str, index: int, config: GemmConfig | None, pdl: bool, reduced: bool = False) -> None:
        """Launch a product, and the kernel that reduces it where `reduced`."""
        weight = self.weights[product][index % len(self.weights[product])]
        columns, size = weight.shape
        config = config or choose(KINDS[product], self.rows, columns, size)
        inputs = {"output": self.attended, "down": self.inner}.get(product, self.normed)
        if product == "lm_head":
            linear(inputs, weight, None, self.logits, config=config, pdl=pdl)
        elif product == "gate_up" and config.splits == 1:
            linear_swiglu(inputs, weight, None, self.inner, config=config, pdl=pdl)
        else:
            partials = linear_partials(inputs, weight, self.workspace, KINDS[product], config=config, pdl=pdl)
            if reduced:
                self.reduce(product, partials, pdl)

    def reduce(self, product: str, partials: Tensor, pdl: bool) -> None:
        """Launch the kernel that follows a product that left partial sums."""
        if product == "qkv":
            rope_append_partials(partials, None, None, EPS, self.cos_sin, self.slots, self.query, self.kv, pdl=pdl)
        elif product == "gate_up":
            swiglu_partials(partials, None, self.inner, pdl=pdl)
        else:
            residual_norm(partials, None, self.hidden, self.norm, EPS, self.normed, pdl=pdl)

    def layer(self, index: int, configs: dict[str, GemmConfig]) -> None:
        """A layer without its attention."""
        for product in PRODUCTS[:4]:
            self.gemm(product, index, configs.get(product), pdl=True, reduced=True)

    def plain_layer(self, index: int) -> None:
        """The same by cuBLAS and separate kernels."""
        for product in PRODUCTS[:4]:
            self.plain(product, index)


def candidates(product: str, shape: Shape, rows: int) -> list[GemmConfig]:
    """Configurations worth trying: grids of a program or two for each multiprocessor."""
    columns, size = shape.weights[product]
    block_m = min(128, max(16, 1 << (rows - 1).bit_length()))
    found = []
    for block in (block_m, 256) if rows > 128 else (block_m,):
        for block_n, block_k, warps, stages in TILES[block]:
            tiles = -(-rows // block) * -(-columns // block_n)
            possible = [
                splits
                for splits in (1, 2, 4, MOST_SPLITS)
                if size % (splits * block_k) == 0 and size // splits >= 4 * block_k and product != "lm_head"
            ]
            enough = [splits for splits in possible if tiles * splits >= 80] or possible[-1:]
            wanted = enough[: 1 if product == "gate_up" else 2] or [1]
            found += [GemmConfig(block, block_n, block_k, splits, warps, stages) for splits in wanted]
    return found


@dataclass(frozen=True)
class Job:
    """One kernel to compile."""

    shape: str
    product: str
    config: GemmConfig


@cache
def _compiling_bench(shape: str) -> GemmBench:
    return GemmBench(SHAPES[shape], 2, random_weights(SHAPES[shape], copies=1))


def compile_job(job: Job) -> str | None:
    """Launch the kernel once in a worker process, which leaves it in Triton's cache on disk; an error's text."""
    try:
        with torch.inference_mode():
            _compiling_bench(job.shape).gemm(job.product, 0, job.config, True, reduced=True)
            torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return None


def compile_all(pool: ProcessPoolExecutor, jobs: Iterable[Job]) -> set[Job]:
    """Compile in parallel; the jobs that failed, each of which is printed."""
    failed: set[Job] = set()
    futures = {pool.submit(compile_job, job): job for job in jobs}
    for future in as_completed(futures):
        try:
            error = future.result()
        except Exception as broken:
            error = str(broken)
        if error is not None:
            print(f"failed {futures[future]}: {error}")
            failed.add(futures[future])
    return failed


def short(config: GemmConfig) -> str:
    """A configuration in a few characters."""
    tile = f"{config.block_m}x{config.block_n}x{config.block_k}"
    return f"{tile}/{config.splits} w{config.warps} s{config.stages} a{config.ahead}"


def sweep(report: Report, name: str, bench: GemmBench, failed: set[Job]) -> dict[str, list[GemmConfig]]:
    """Time every candidate of every product on its own; for each product the configurations from the best on."""
    ranked: dict[str, list[GemmConfig]] = {}
    for product in PRODUCTS:
        weights = bench.weights[product]
        times = {}
        for config in candidates(product, SHAPES[name], bench.rows):
            if Job(name, product, config) not in failed and not report.out_of_time:
                launch = partial(bench.gemm, product, config=config, pdl=True)
                times[config] = report.time(f"{product} {config}", launch, max(4, len(weights)))
        if not times:
            continue
        ranked[product] = sorted(times, key=times.__getitem__)
        us = times[ranked[product][0]]
        key = f"{name}.{product}.m{bench.rows}"
        report.raw[key] = {short(config): times[config] for config in ranked[product]}
        report.keep(f"{key}.gemm", us)
        rate = weights[0].nbytes / us / 1e3
        others = "  ".join(f"{short(config)} {times[config]:.1f}" for config in ranked[product][1:3])
        print(
            f"{name:10} {product:8} {bench.rows:4} {us:8.2f} us {rate:6.0f} GB/s {rate / report.bandwidth:5.0%}  "
            f"{short(ranked[product][0])} | {others}"
        )
    return ranked


def refine(report: Report, bench: GemmBench, ranked: dict[str, list[GemmConfig]], ahead: bool) -> dict[str, GemmConfig]:
    """The configurations with which a whole layer takes least, tried for one product after the other."""
    best = {product: configs[0] for product, configs in ranked.items()}
    count = len(bench.weights["qkv"])

    def timed(configs: dict[str, GemmConfig]) -> float:
        return report.time(f"layer {bench.rows}", partial(bench.layer, configs=configs), count)

    least = timed(best)
    for product in PRODUCTS[:4]:
        alternatives = ranked.get(product, [])[1:4]
        if ahead and product in best:
            alternatives = [replace(best[product], ahead=each) for each in (0, 1024, 2048)]
        for config in alternatives:
            if not report.out_of_time:
                us = timed(best | {product: config})
                if us < least:
                    least, best = us, best | {product: config}
    return best


def compare_layers(
    report: Report, name: str, benches: dict[int, GemmBench], best: dict[int, dict[str, GemmConfig]]
) -> None:
    """Print a layer's time beside cuBLAS, and the configurations of the layer."""
    ideal = sum(benches[2].weights[product][0].nbytes for product in PRODUCTS[:4]) / report.bandwidth / 1e3
    print(f"\n{name} layer, {ideal:.1f} us at the copy's bandwidth\nrows    tuned  default   cuBLAS us")
    for rows, bench in benches.items():
        count = len(bench.weights["qkv"])
        chosen = best[rows]
        times = {
            "gemm": report.time(f"layer {rows}", partial(bench.layer, configs=chosen), count),
            "gemm_default": report.time(f"default layer {rows}", partial(bench.layer, configs={}), count),
            "cublas": report.time(f"plain layer {rows}", bench.plain_layer, count),
        }
        used = "; ".join(f"{product} {short(config)}" for product, config in chosen.items() if product != "lm_head")
        print(f"{rows:4} " + " ".join(f"{us:8.2f}" for us in times.values()) + f"  {used}")
        for suffix, us in times.items():
            report.keep(f"{name}.layer.m{rows}.{suffix}", us)
        report.raw[f"{name}.layer.m{rows}"] = {product: short(config) for product, config in chosen.items()}


def reductions(report: Report, name: str, benches: dict[int, GemmBench]) -> None:
    """Print the times of the kernels between the products."""
    print(f"\n{name}: rows, then us of rope_append_partials, residual_norm, each with 4 splits, overlapping")
    for rows, bench in benches.items():
        times = []
        for product in ("qkv", "output"):
            columns = bench.weights[product][0].shape[0]
            partials = bench.workspace[: 4 * rows * columns].view(4, rows, columns)

            def launch(_: int, bench: GemmBench = bench, product: str = product, parts: Tensor = partials) -> None:
                bench.reduce(product, parts, True)

            times.append(report.time(f"reduce {product}", launch, 22))
        print(f"{rows:4} " + " ".join(f"{us:8.2f}" for us in times))


def measure(report: Report, pool: ProcessPoolExecutor, name: str) -> None:
    """Everything about one shape."""
    shape = SHAPES[name]
    began = time.monotonic()
    jobs = {
        Job(name, product, config): None
        for rows in ROWS
        for product in PRODUCTS
        for config in (*candidates(product, shape, rows), choose(KINDS[product], rows, *shape.weights[product]))
    }
    failed = compile_all(pool, jobs)
    print(f"{len(jobs)} kernels compiled in {time.monotonic() - began:.0f} s")
    weights = random_weights(shape)
    benches = {rows: GemmBench(shape, rows, weights) for rows in ROWS}
    best = {}
    for rows, bench in benches.items():
        ranked = sweep(report, name, bench, failed)
        best[rows] = refine(report, bench, ranked, ahead=False)
    compile_all(
        pool,
        {
            Job(name, product, replace(config, ahead=ahead)): None
            for configs in best.values()
            for product, config in configs.items()
            if product != "lm_head"
            for ahead in (0, 1024, 2048)
        },
    )
    for rows, bench in benches.items():
        ranked = {product: [config] for product, config in best[rows].items()}
        best[rows] = refine(report, bench, ranked, ahead=True)
    compare_layers(report, name, benches, best)
    reductions(report, name, benches)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Time the products of 2 to 256 rows.")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=100.0, help="stop sweeping after that long")
    arguments = parser.parse_args()

    report = Report(copy_bandwidth(), arguments.seconds)
    print(f"{torch.cuda.get_device_name()}: copy {report.bandwidth:.0f} GB/s")
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool, torch.inference_mode():
        for name in arguments.shapes:
            measure(report, pool, name)
            torch.cuda.empty_cache()

    device = "h200" if "H200" in torch.cuda.get_device_name() else "h100"
    path = write_result(
        benchmark="gemm",
        subject="decode",
        hardware=device,
        metrics=report.metrics,
        raw=report.raw,
        packages=("triton",),
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""The fused kernels of a decode step of one row on a GPU, beside cuBLAS with the kernels between its products.

For each product of a layer: the best of a sweep of launch configurations, against the bandwidth of a device-to-device
copy measured in the same run. Then a whole layer without attention, fused and not; and what a step does before and
after its layers, sampling included, at several batches. Times are of CUDA graph replays over enough different weights
that L2 serves none of them. `benchmarks.gemm` measures more rows.

Run it with `python -m benchmarks.kernels [--shapes NAME ...] [--format fp8] [--seconds N]`. It stops sweeping when the
time is up, and writes what it has. With a format, the fused kernels read weights of 8 bits, and cuBLAS those of 16.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import write_result
from dendrite.kernels.elementwise import final_norm, prepare
from dendrite.kernels.linear import gate_up_swiglu, linear, linear_residual, qkv_rope_append
from dendrite.kernels.linear_config import LinearConfig
from dendrite.kernels.reduce import residual_norm, rope_append_partials, swiglu_partials
from dendrite.kernels.sampling import STOP_IDS, advance, sample, sampling_workspace
from dendrite.quant.weights import Scales, by_mx_blocks, by_rows

END_ROWS = (1, 64, 256)
PAGE_SIZE = 16
EPS = 1e-5
PRODUCTS = ("qkv", "output", "gate_up", "down", "lm_head")


# block_n, block_k, warps, stages
CONFIGS = tuple(
    LinearConfig(*each)
    for each in (
        (2, 2048, 4, 2),
        (4, 2048, 4, 2),
        (4, 2048, 4, 3),
        (8, 2048, 8, 2),
        (4, 1024, 4, 3),
        (8, 1024, 4, 3),
        (2, 1024, 2, 4),
        (4, 512, 2, 4),
        (8, 512, 4, 4),
    )
)
FORMATS = {"fp8": by_rows, "mxfp8": by_mx_blocks}
# Tiles of as many bytes where elements are of 8 bits.
BYTE_CONFIGS = tuple(
    LinearConfig(*each)
    for each in ((2, 4096, 4, 2), (2, 4096, 4, 3), (4, 4096, 4, 2), (4, 4096, 4, 3), (4, 4096, 8, 2), (8, 4096, 8, 2))
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and how many different layers and heads to measure over."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    layers: int
    lm_heads: int

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each product's weight."""
        query = self.heads * self.head_dim
        return {
            "qkv": (query + 2 * self.kv_heads * self.head_dim, self.hidden),
            "output": (self.hidden, query),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "lm_head": (self.vocabulary, self.hidden),
        }


SHAPES = {
    "tinyllama": Shape(2048, 5632, 32, 4, 64, 32000, layers=22, lm_heads=4),
    "llama3-8b": Shape(4096, 14336, 32, 8, 128, 128256, layers=8, lm_heads=2),
}


class Bench:
    """Weights and activations of one shape, and its products, fused and not."""

    def __init__(
        self,
        shape: Shape,
        rows: int,
        weights: dict[str, list[Tensor]],
        device: str = "cuda",
        form: str | None = None,
    ) -> None:
        """Take weights [N, K] by product; with `form`, the fused kernels read them in that format."""

        def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        query = shape.heads * shape.head_dim
        self.rows = rows
        self.weights = weights
        self.stored = (
            {} if form is None else {name: [FORMATS[form](each) for each in found] for name, found in weights.items()}
        )
        self.norm = torch.ones(shape.hidden, dtype=torch.bfloat16, device=device)
        self.hidden = torch.randn(rows, shape.hidden, device=device).bfloat16()
        self.normed = self.hidden.clone()
        self.attended = torch.randn(rows, query, device=device).bfloat16()
        self.query = empty(rows, shape.heads, shape.head_dim)
        self.inner = torch.randn(rows, shape.inner, device=device).bfloat16()
        self.outputs = {name: empty(rows, size) for name, (size, _) in shape.weights.items()}
        self.logits = empty(rows, shape.vocabulary, dtype=torch.float32)
        self.cos_sin = torch.rand(rows, shape.head_dim, device=device)
        self.slots = torch.arange(PAGE_SIZE, PAGE_SIZE + rows, dtype=torch.int32, device=device)
        pages = rows // PAGE_SIZE + 2
        self.kv = empty(pages, 2, PAGE_SIZE, shape.kv_heads, shape.head_dim)

    def fused(self, product: str, index: int, config: LinearConfig | None, pdl: bool) -> None:
        """Launch a product with what belongs to it as one kernel."""
        weight, scales = self._operand(product, index)
        match product:
            case "qkv":
                qkv_rope_append(
                    self.hidden,
                    self.norm,
                    EPS,
                    weight,
                    None,
                    None,
                    self.cos_sin,
                    self.slots,
                    self.query,
                    self.kv,
                    scales=scales,
                    config=config,
                    pdl=pdl,
                )
            case "output":
                linear_residual(self.attended, weight, None, self.hidden, scales=scales, config=config, pdl=pdl)
            case "gate_up":
                gate_up_swiglu(
                    self.hidden, self.norm, EPS, weight, None, self.inner, scales=scales, config=config, pdl=pdl
                )
            case "down":
                linear_residual(self.inner, weight, None, self.hidden, scales=scales, config=config, pdl=pdl)
            case "lm_head":
                linear(self.hidden, weight, None, self.logits, scales=scales, config=config, pdl=pdl)

    def nbytes(self, product: str) -> int:
        """Bytes of one weight, as the fused kernels read it."""
        return (self.stored.get(product) or self.weights[product])[0].nbytes

    def _operand(self, product: str, index: int) -> tuple[Tensor, Scales | None]:
        if product not in self.stored:
            return self.weights[product][index % len(self.weights[product])], None
        found = self.stored[product][index % len(self.stored[product])]
        return found.elements, found.scales

    def plain(self, product: str, index: int) -> None:
        """The product by cuBLAS, and the kernel that follows it."""
        inputs = {"output": self.attended, "down": self.inner}.get(product, self.normed)
        out = self.outputs[product]
        torch.mm(inputs, self.weights[product][index % len(self.weights[product])].t(), out=out)
        if product == "qkv":
            rope_append_partials(out[None], None, None, EPS, self.cos_sin, self.slots, self.query, self.kv)
        elif product == "gate_up":
            swiglu_partials(out[None], None, self.inner)
        elif product != "lm_head":
            residual_norm(out[None], None, self.hidden, self.norm, EPS, self.normed)


@dataclass(frozen=True)
class Job:
    """One kernel to compile or time."""

    shape: str
    product: str
    config: LinearConfig
    pdl: bool
    form: str | None = None


def random_weights(shape: Shape, copies: int | None = None) -> dict[str, list[Tensor]]:
    """Weights of all products, as many as the shape asks for or `copies`."""

    def draw(size: tuple[int, int]) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)

    return {
        name: [draw(size) for _ in range(copies or (shape.lm_heads if name == "lm_head" else shape.layers))]
        for name, size in shape.weights.items()
    }


@cache
def _compiling_bench(shape: str, form: str | None) -> Bench:
    return Bench(SHAPES[shape], 1, random_weights(SHAPES[shape], copies=1), form=form)


def compile_job(job: Job) -> str | None:
    """Launch the kernel once in a worker process, which leaves it in Triton's cache on disk; an error's text."""
    try:
        _compiling_bench(job.shape, job.form).fused(job.product, 0, job.config, job.pdl)
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


def graph_time(launch: Callable[[int], None], launches: int) -> float:
    """Microseconds a launch of `launch(0)` .. `launch(launches - 1)`, the best of five timings of graph replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch(0)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for index in range(launches):
                launch(index)
        graph.replay()
        times = []
        for _ in range(5):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(3):
                graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / (3 * launches))
    return float(min(times))


def copy_bandwidth() -> float:
    """GB/s read and written by a copy of 2 GiB within the device."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**31 / graph_time(lambda _: void(target.copy_(source)), 2) / 1e3


def void(_: object) -> None:
    """Take a value nobody wants."""


class Report:
    """Figures as they come: printed, and kept for the result file."""

    def __init__(self, bandwidth: float, seconds: float) -> None:
        self.bandwidth = bandwidth
        self.deadline = time.monotonic() + seconds
        self.metrics: dict[str, float] = {"kernels.copy_gb_s": bandwidth}
        self.raw: dict[str, Any] = {}

    @property
    def out_of_time(self) -> bool:
        """Whether what is not needed should be left out."""
        return time.monotonic() > self.deadline

    def time(self, name: str, launch: Callable[[int], None], launches: int) -> float:
        """Time a launch; infinity, and a line, where it fails."""
        try:
            return graph_time(launch, launches)
        except Exception as error:
            print(f"failed {name}: {type(error).__name__}: {str(error)[:200]}")
            return float("inf")

    def keep(self, name: str, us: float) -> None:
        """Keep a time under a metric's name, unless the measurement failed."""
        if us < float("inf"):
            self.metrics[f"kernels.{name}.us"] = us


def configs(form: str | None) -> tuple[LinearConfig, ...]:
    """What is swept for weights of a format."""
    return CONFIGS if form is None else (*CONFIGS, *BYTE_CONFIGS)


def sweep(report: Report, name: str, form: str | None, bench: Bench, failed: set[Job]) -> dict[Job, float]:
    """Time every configuration with overlapping launches; the best of each product."""
    best: dict[Job, float] = {}
    for product in PRODUCTS:
        times: dict[Job, float] = {}
        for config in configs(form):
            job = Job(name, product, config, True, form)
            if job not in failed and not report.out_of_time:
                times[job] = time_fused(report, bench, job)
        times = {job: us for job, us in times.items() if us < float("inf")}
        if times:
            job = min(times, key=times.__getitem__)
            best[job] = times[job]
            report.raw[f"{name}.{product}.m1"] = {_short(each.config): us for each, us in times.items()}
    return best


def time_fused(report: Report, bench: Bench, job: Job) -> float:
    """Microseconds of a fused product."""
    count = max(4, len(bench.weights[job.product]))
    return report.time(str(job), lambda index: bench.fused(job.product, index, job.config, job.pdl), count)


def compare(report: Report, name: str, bench: Bench, best: dict[Job, float]) -> None:
    """Print the best of the sweep beside the same without overlap, and beside cuBLAS."""
    print(f"\n{name:10} {'':8} {'fused':>8} {'no pdl':>8} {'cuBLAS':>8} us   GB/s  of copy  configuration")
    for job, us in best.items():
        product = job.product
        serial = time_fused(report, bench, replace(job, pdl=False))
        count = max(4, len(bench.weights[product]))
        plain = report.time(f"plain {product}", partial(bench.plain, product), count)
        rate = bench.nbytes(product) / us / 1e3
        print(
            f"{name:10} {product:8} {us:8.2f} {serial:8.2f} {plain:8.2f} {rate:9.0f} "
            f"{rate / report.bandwidth:8.0%}  {_short(job.config)}"
        )
        key = f"{name}.{product}.m1"
        for suffix, value in (("fused", us), ("fused_serial", serial), ("cublas", plain)):
            report.keep(f"{key}.{suffix}", value)
        report.raw[f"{key}.best"] = _short(job.config)


def _short(config: LinearConfig) -> str:
    return f"{config.block_n}x{config.block_k} w{config.warps} s{config.stages}"


def chain(report: Report, name: str, bench: Bench, best: dict[Job, float]) -> None:
    """A layer without its attention: the four products, one after the other, over different layers."""
    layer = PRODUCTS[:4]
    ideal = sum(map(bench.nbytes, layer)) / report.bandwidth / 1e3
    chosen = {job.product: job.config for job in best}
    count = len(bench.weights["qkv"])

    def fused(index: int, configs: dict[str, LinearConfig], pdl: bool) -> None:
        for product in layer:
            bench.fused(product, index, configs.get(product), pdl)

    def plain(index: int) -> None:
        for product in layer:
            bench.plain(product, index)

    times = {
        "fused": report.time("fused layer", partial(fused, configs=chosen, pdl=True), count),
        "fused_default": report.time("default layer", partial(fused, configs={}, pdl=True), count),
        "fused_serial": report.time("serial layer", partial(fused, configs=chosen, pdl=False), count),
        "cublas": report.time("plain layer", plain, count),
    }
    print(f"\n{name} layer, {ideal:.1f} us at the copy's bandwidth\n   fused  default   no pdl   cuBLAS us")
    print(" ".join(f"{us:8.2f}" for us in times.values()))
    for suffix, us in times.items():
        report.keep(f"{name}.layer.m1.{suffix}", us)


def step_ends(report: Report, name: str, shape: Shape) -> None:
    """What a step does before and after its layers."""
    print(f"\n{name}: rows, then us of prepare, final_norm, sample, sample of filtered logits, advance")
    for rows in END_ROWS:
        times = {}
        for what, launch in _ends(shape, rows).items():
            times[what] = report.time(f"{what} {rows}", launch, 8)
            report.keep(f"{name}.{what}.m{rows}", times[what])
        print(f"{rows:4} " + " ".join(f"{us:8.2f}" for us in times.values()))


def _ends(shape: Shape, rows: int) -> dict[str, Callable[[int], None]]:
    """The launches at a step's ends, by name."""
    device = "cuda"

    def integers(*size: int, value: int = 0) -> Tensor:
        return torch.full(size, value, dtype=torch.int32, device=device)

    embedding = torch.randn(shape.vocabulary, shape.hidden, device=device, dtype=torch.bfloat16)
    hidden = torch.randn(rows, shape.hidden, device=device).bfloat16()
    ring = torch.empty(4, rows, shape.hidden, dtype=torch.bfloat16, device=device)
    cos_sin = torch.empty(rows, shape.head_dim, device=device)
    frequencies = torch.rand(shape.head_dim // 2, device=device)
    logits = torch.randn(rows, shape.vocabulary, device=device)
    filtered = logits.clone()
    token, positions, slots, lengths, stopping, row_start = (integers(rows) for _ in range(6))
    alive, step, pages = integers(rows, value=1), integers(1), integers(64, value=1)
    scratch = integers(1)
    seeds, branches = torch.arange(rows, device=device), torch.arange(rows, device=device)
    temperature = torch.ones(rows, device=device)
    workspace = sampling_workspace(rows, shape.vocabulary, device)
    stop_ids = integers(rows, STOP_IDS, value=-1)
    rings = integers(4, rows), torch.empty(4, rows, device=device)
    keys = seeds, branches, positions, stop_ids, alive, step, workspace, token, stopping, *rings
    norm = torch.ones(shape.hidden, device=device, dtype=torch.bfloat16)
    table = pages, row_start, PAGE_SIZE, embedding, frequencies, hidden, cos_sin, slots, lengths
    return {
        "prepare": lambda _: prepare(token, positions, alive, *table, pdl=True),
        "final_norm": lambda _: final_norm(hidden, norm, EPS, alive, step, hidden, ring, pdl=True),
        "sample": lambda _: sample(logits, logits, temperature, *keys, pdl=True),
        "sample_filtered": lambda _: sample(logits, filtered, temperature, *keys, pdl=True),
        "advance": lambda _: advance(alive, stopping, lengths, scratch, pdl=True),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Time the fused kernels of a decode step.")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--format", dest="form", choices=tuple(FORMATS), help="of the weights; 16 bits by default")
    parser.add_argument("--seconds", type=float, default=120.0, help="stop sweeping after that long")
    arguments = parser.parse_args()

    report = Report(copy_bandwidth(), arguments.seconds)
    print(f"{torch.cuda.get_device_name()}: copy {report.bandwidth:.0f} GB/s")
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool, torch.inference_mode():
        began = time.monotonic()
        failed = compile_all(
            pool,
            [
                Job(name, product, config, True, arguments.form)
                for name in arguments.shapes
                for product in PRODUCTS
                for config in configs(arguments.form)
            ],
        )
        print(f"compiled in {time.monotonic() - began:.0f} s")
        for name in arguments.shapes:
            shape = SHAPES[name]
            bench = Bench(shape, 1, random_weights(shape), form=arguments.form)
            best = sweep(report, name, arguments.form, bench, failed)
            compile_all(pool, [replace(job, pdl=False) for job in best])
            compare(report, name, bench, best)
            chain(report, name, bench, best)
            del bench
            step_ends(report, name, shape)
            torch.cuda.empty_cache()

    device = "h200" if "H200" in torch.cuda.get_device_name() else "h100"
    path = write_result(
        benchmark="kernels",
        subject="decode",
        hardware=device,
        metrics=report.metrics,
        raw=report.raw,
        packages=("triton",),
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()

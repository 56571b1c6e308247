"""Write README's figures from benchmarks/results, so that none is typed by hand.

A block stands between `<!-- results: NAME -->` and `<!-- /results -->`; NAME is a key of `BLOCKS`.

    python -m benchmarks.readme            write README.md again
    python -m benchmarks.readme --check    change nothing; exit 1 where README is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS
from benchmarks.tables import figure, load, short, table, with_source, with_sources

README = Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(r"(?P<open><!-- results: (?P<name>\w+) -->\n).*?(?P<close><!-- /results -->)", re.DOTALL)


def block_names(text: str) -> list[str]:
    """Names of the blocks that a README text has, in order."""
    return [match["name"] for match in _BLOCK.finditer(text)]


def refresh(text: str, blocks: Mapping[str, Callable[[], str]] | None = None) -> str:
    """The text with every block written again from the results.

    Args:
        text: README's, or that of a page of the documentation.
        blocks: what writes a block, by name; None is `BLOCKS`.

    Raises:
        KeyError: a block's name is not in `blocks`, or its result lacks a metric.
        FileNotFoundError: a block's result file is missing.
    """
    known = BLOCKS if blocks is None else blocks
    return _BLOCK.sub(lambda match: f"{match['open']}{known[match['name']]()}\n{match['close']}", text)


def fork_block() -> str:
    """What a fork costs, and that neither context, depth nor siblings change it."""
    result = load("fork-cpu-metadata")
    metrics = result["metrics"]
    rows = [
        ("`fork(1)`, median", f"{short(metrics['fork.p50_us'])} µs"),
        ("a child in `fork(64)`", f"{short(metrics['fork.n64_us'])} µs"),
        ("bookkeeping for a child", f"{short(metrics['fork.metadata_bytes'])} bytes"),
        ("time with the longest context ÷ the shortest", short(metrics["fork.context_ratio"])),
        ("time at the deepest node ÷ the shallowest", short(metrics["fork.depth_ratio"])),
        ("time with the most siblings ÷ the fewest", short(metrics["fork.sibling_ratio"])),
    ]
    return with_source(table(("Fork", "Measured"), rows), result)


def grammar_block() -> str:
    """What following a schema costs a token, beside xgrammar where that was there, and generation as a whole."""
    result = load("grammar-cpu-tiny")
    metrics = result["metrics"]
    rows = [
        (label, *(figure(metrics.get(f"{name}.{step}_us")) for name in ("grammar", "xgrammar")))
        for step, label in _GRAMMAR_STEPS.items()
    ]
    masks, relative = short(metrics["grammar.b64.masks_ms"]), short(metrics["grammar.b64.relative_tok_s"])
    gpu = load("grammar-h100-tinyllama")
    alone, many = (short(gpu["metrics"][f"grammar.b{batch}.relative_tok_s"]) for batch in (1, 64))
    note = (
        f"The masks of 64 branches take {masks} ms together. On the CPU, 64 branches of a small model of random "
        f"weights reach {relative} times the tokens/s of free ones. On an H100, where the masks of a token are made "
        f"while the model runs the one before, constrained rows of TinyLlama's shape reach {alone} times the rate of "
        f"free ones alone, and {many} times in a batch of 64."
    )
    figures = table(("A token", "Dendrite, µs", "xgrammar, µs"), rows)
    return with_sources(f"{figures}\n\n{note}", result, gpu)


def quant_block() -> str:
    """What 8 bits gain in time and memory, and what they cost in perplexity."""
    small, large = load("quant-h100-tinyllama"), load("quant-h100-llama3-8b-weights")
    large_kv, text = load("quant-h100-llama3-8b-kv"), load("quant-h100-stdlib-63m")
    rows = []
    for way, label in _QUANT_WAYS.items():
        times = [figure(each["metrics"].get(f"quant.{way}.time_ratio")) for each in (small, large)]
        size = figure(large["metrics"].get(f"quant.{way}.weight_ratio"))
        ratio, divergence = (text["metrics"][f"quant.{way}.{what}"] for what in ("ppl_ratio", "kl"))
        rows.append((label, *times, size, f"{ratio:.4f}", f"{divergence:.2g}"))
    header = (
        "÷ bfloat16",
        "time a token, TinyLlama",
        "time a token, Llama-3-8B",
        "bytes of weights",
        "perplexity",
        "KL, nats",
    )
    gain, large_gain = (short(each["metrics"]["quant.kv8.rate_ratio"]) for each in (small, large_kv))
    searched = load("quant-cpu-countdown")
    solved: dict[str, Any] = searched["raw"]["solved"]
    counts = ", ".join(f"{solved[way]['solved']} with {label}" for way, label in _SEARCHED_WAYS.items())
    plain, (low, high) = solved["bf16"], solved["bf16"]["interval"]
    note = (
        f"Perplexity and KL are of a model of 63 M parameters on sources of Python's library that it has not seen. "
        f"256 branches that share nothing of their 2,048 tokens decode {gain} times as fast with an FP8 KV cache on "
        f"TinyLlama's shape, {large_gain} times on Llama-3-8B's (with FP8 weights in both). Of {plain['problems']} "
        f"held-out Countdown problems MCTS solves {plain['solved']} ({low:.0%} – {high:.0%}) within {plain['tokens']} "
        f"tokens in bfloat16; {counts}."
    )
    return with_sources(f"{table(header, rows)}\n\n{note}", small, large, large_kv, text, searched)


def decode_block() -> str:
    """Decoding 64 branches on the CPU, beside transformers."""
    result = load("decode-cpu-countdown")
    metrics = result["metrics"]
    rates = [
        ("Dendrite: `prefill`, `fork(64)`, `decode`", metrics["decode.n64.tok_s"]),
        ("transformers: `generate(num_return_sequences=64)`", metrics["decode.transformers.tok_s"]),
        ("transformers: the prompt's cache expanded by hand", metrics["decode.transformers_shared.tok_s"]),
    ]
    own = metrics["decode.n64.tok_s"]
    lines = [(name, f"{rate:,.0f}", f"{own / rate:.2f}×") for name, rate in rates]
    return with_source(table(("64 branches × 32 tokens", "tokens/s", "Dendrite ÷ this"), lines), result)


def search_block() -> str:
    """What each search solves of Countdown at equal tokens."""
    result = load("search-cpu-countdown")
    ratio = short(result["metrics"]["search.mcts.token_ratio"])
    note = f"At the highest solve rate that both reach, MCTS generates {ratio} times the tokens of best of n."
    return with_source(f"{_search_table(result, 'held-out Countdown problems')}\n\n{note}", result)


def game24_block() -> str:
    """What each search solves of the Game of 24."""
    result = load("search-cpu-game24")
    return with_source(_search_table(result, "puzzles of the Game of 24"), result)


def _search_table(result: dict[str, Any], problems: str) -> str:
    """A row a search, the best at the largest token budget first; a column a budget."""
    points: dict[str, dict[str, dict[str, Any]]] = {}
    for point in result["raw"]["points"]:
        [(kind, limit)] = point["budget"].items()
        points.setdefault(point["search"], {})[f"{limit:,} tokens" if kind == "tokens" else f"{limit:g} s"] = point
    budgets = list(next(iter(points.values())))
    largest = [budget for budget in budgets if budget.endswith("tokens")][-1]
    ranked = sorted(points, key=lambda name: -points[name][largest]["solved"])
    rows = []
    for name in ranked:
        rates = [f"{points[name][budget]['solved'] / result['raw']['problems']:.1%}" for budget in budgets]
        end = points[name][largest]
        rows.append((f"`{name}`", *rates, f"{end['low']:.0%} – {end['high']:.0%}", short(end["tokens"])))
    header = (
        f"{result['raw']['problems']} {problems}",
        *budgets,
        f"95 % interval at {largest}",
        "tokens spent there, mean",
    )
    return table(header, rows)


def parallel_block() -> str:
    """MCTS at the same number of expansions with more of them in flight: what it solves, and how fast it is."""
    result = load("parallel_search-cpu-countdown")
    metrics, points = result["metrics"], {point["search"]: point for point in result["raw"]["points"]}
    counts = {"wu_uct": "WU-UCT", "virtual_loss": "virtual loss", "none": "naive"}
    titles = {"fixed": "fixed fan-out", "widening": "progressive widening"}
    rows = []
    for in_flight in (1, 4, 16, 64):
        cells = [_rate_of(points[f"{setting}.{mode}.f{in_flight}"]) for setting in titles for mode in counts]
        rate, gain = metrics[f"parallel.f{in_flight}.expansions_s"], metrics[f"parallel.f{in_flight}.speedup"]
        rows.append((str(in_flight), *cells, short(rate), f"{gain:.1f}×"))
    solved = [f"{title}: {count}" for title in titles.values() for count in counts.values()]
    return with_source(table(("in flight", *solved, "expansions/s", "gain"), rows), result)


def _rate_of(point: dict[str, Any]) -> str:
    return f"{point['solved'] / point['problems']:.0%} ({point['low']:.0%} – {point['high']:.0%})"


def cluster_block() -> str:
    """What a cluster on this machine costs, gains and survives."""
    manager, overhead = load("manager-cpu-topology"), load("cluster_overhead-cpu-countdown")
    replication, chaos = load("replication-cpu-countdown"), load("chaos-cpu-countdown")
    stopped, running = (manager["metrics"][f"expand.{state}_p99_ms"] for state in ("stopped", "running"))
    rows = [
        (
            "node events a second that one shard of the tree manager takes",
            short(manager["metrics"]["manager.events_per_s"]),
        ),
        ("99th percentile of an expansion's time, the tree manager running", f"{short(running)} ms"),
        ("the same with the tree manager stopped", f"{short(stopped)} ms"),
        (
            "8 children × 16 tokens through the cluster ÷ on a local engine",
            short(overhead["metrics"]["cluster.overhead_ratio"]),
        ),
        ("two workers on a hot prefix ÷ one, tokens/s", short(replication["metrics"]["replication.speedup"])),
        *((label, short(chaos["metrics"][f"chaos.{name}"])) for name, label in _CHAOS.items()),
    ]
    return with_sources(table(("On the CPU", "Measured"), rows), manager, overhead, replication, chaos)


def serve_block() -> str:
    """What 200 concurrent streams get over HTTP, beside the engine's own rate."""
    result, on_ray = load("serve-cpu-countdown-local"), load("serve-cpu-countdown")
    labels = {
        "tok_s": "tokens/s over HTTP",
        "engine_tok_s": "the same work by calls of the engine, tokens/s",
        "engine_ratio": "HTTP ÷ engine",
        "first_token_p50_ms": "time to the first token, median, ms",
        "first_token_p99_ms": "the same, 99th percentile, ms",
        "between_chunks_p50_ms": "from one chunk of a stream to its next, median, ms",
        "requests": "requests",
        "errors": "errors",
        "pages_left": "KV pages held afterwards",
    }
    rows = [
        (label, *(short(each["metrics"][f"serve.{name}"]) for each in (result, on_ray)))
        for name, label in labels.items()
    ]
    header = ("200 streams of 32 tokens for a minute", "one process (`--local`)", "on Ray Serve")
    return with_sources(table(header, rows), result, on_ray)


def gpu_block() -> str:
    """The tree workloads on a GPU, beside vLLM's figures and transformers on the same weights in the same run."""
    small, large = load("tree_workloads-h100-tinyllama"), load("tree_workloads-h100-llama3-8b")
    rows = []
    for metric, label in _WORKLOADS.items():
        peer = small["metrics"].get(f"transformers.{metric}")
        cells = [label, *(figure(result["metrics"].get(metric)) for result in (small, large))]
        vllm = [GOALS[shape][metric].vllm if metric in GOALS[shape] else None for shape in ("tinyllama", "llama3-8b")]
        rows.append((cells[0], cells[1], figure(vllm[0]), figure(peer), cells[2], figure(vllm[1])))
    header = ("", "TinyLlama shape", "vLLM, H200", "transformers", "Llama-3-8B shape", "vLLM, H200")
    return with_source(table(header, rows), small)


def attention_block() -> str:
    """Attention of one layer over a shared prefix, beside FlashInfer's flat decode kernel."""
    result = load("attention-h100-tree")
    rows = []
    for batch in (8, 64, 256):
        for prefix in (512, 4096, 32768):
            name = f"attention.b{batch}.p{prefix}"
            tree, flat, peer = (result["metrics"][f"{name}.{kind}_us"] for kind in ("tree", "flat", "flashinfer"))
            rows.append((f"{batch} × {prefix:,}", short(tree), short(flat), short(peer), f"{peer / tree:.1f}×"))
    header = ("branches × shared tokens", "tree, µs", "flat, µs", "FlashInfer, µs", "FlashInfer ÷ tree")
    return with_source(table(header, rows), result)


_WORKLOADS = {
    "W1.ms_per_token": "one sequence, ms a token",
    "W2.n8.tok_s": "8 branches of 4,096 tokens, tokens/s",
    "W2.n64.tok_s": "64 branches, tokens/s",
    "W2.n256.tok_s": "256 branches, tokens/s",
    "W3.f1.ms_per_expansion": "tree search of 32-token expansions, ms each",
    "W3.f16.ms_per_expansion": "the same, 16 in flight",
    "W4.c4096.ms": "branch 4,096 tokens, ms to the first token",
    "W4.c16000.ms": "branch 16,000 tokens, ms to the first token",
    "W5.tok_s": "8 trees × 16 leaves × 8 levels, tokens/s",
}


_CHAOS = {
    "kills": "workers, managers and drivers killed in ten minutes of jobs",
    "problems": "problems searched meanwhile",
    "equal": "of them, the share with the result of an undisturbed run",
    "leaked": "nodes, pages and leases left",
    "slowdown": "time of such a job ÷ undisturbed",
}
_QUANT_WAYS = {
    "fp8": "FP8 weights and activations",
    "fp8_weight_only": "FP8 weights",
    "mxfp8_weight_only": "MXFP8 weights",
    "kv8": "FP8 KV cache",
    "fp8_kv8": "FP8 weights, activations and KV cache",
}
_SEARCHED_WAYS = {
    "fp8": "FP8 weights and activations",
    "fp8_weight_only": "FP8 weights",
    "mxfp8": "MXFP8 weights and activations",
    "mxfp8_weight_only": "MXFP8 weights",
    "kv8": "FP8 KV",
    "fp8_kv8": "FP8 weights, activations and KV",
}
_GRAMMAR_STEPS = {
    "mask_p50": "mask of what may come next, median",
    "mask_mean": "the same, mean",
    "consume_p50": "step over a token, median",
    "fork_p50": "fork, median",
}


BLOCKS: dict[str, Callable[[], str]] = {
    "gpu": gpu_block,
    "attention": attention_block,
    "cluster": cluster_block,
    "serve": serve_block,
    "fork": fork_block,
    "grammar": grammar_block,
    "quant": quant_block,
    "decode": decode_block,
    "search": search_block,
    "game24": game24_block,
    "parallel": parallel_block,
}


def main() -> int:
    """Refresh README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where README is out of date")
    check = parser.parse_args().check
    before = README.read_text()
    after = refresh(before)
    if check and after != before:
        print("README.md is out of date: run `python -m benchmarks.readme`", file=sys.stderr)
        return 1
    if after != before:
        README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())

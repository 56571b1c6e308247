"""What grammars cost: single masks, steps and forks beside xgrammar, and the speed of generation with and without.

A byte-level BPE of 32,000 tokens is trained first, on the sources of Python's standard library. Masks, steps and forks
are timed one by one along documents that are valid under a schema of eight fields, on one thread, and those of 64
branches together, as the engine asks for them. xgrammar gets the same schema, tokenizer and tokens where it can be
imported (`pip install -e .[bench]`).

Then a model of random weights generates, at batches of 1 and 64, with nothing to follow and under an array of such
documents that never ends; the two take turns. Every figure is the median of several runs.

    python -m benchmarks.grammar [--device cuda --shape tinyllama] [--runs N] [--tokens N] [--documents N] [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, Spread, spread, write_result
from benchmarks.grammar_corpus import EOS, SCHEMA, VOCABULARY, documents, train_tokenizer
from benchmarks.grammar_times import XGrammar, batch_times, compiled_for, step_times, summary
from benchmarks.machine import hardware_name, installed
from benchmarks.models import SHAPES
from dendrite import Engine, EngineConfig, Grammar, SamplingParams
from dendrite.grammar.compiler import GrammarCompiler, wrapped
from dendrite.model.decoder import Decoder
from dendrite.model.tokenizer import Tokenizer

BATCHES = (1, 64)
PROMPT = 128
ENDLESS = Grammar(json_schema={"type": "array", "items": SCHEMA, "minItems": 1_000_000}, white_space=False)
TARGETS = {
    "grammar.mask_p50_us": 20.0,
    "grammar.mask_mean_us": 40.0,
    "grammar.consume_p50_us": 5.0,
    "grammar.fork_p50_us": 3.0,
}
"""The most that each may be."""
AT_LEAST = {"grammar.b1.relative_tok_s": 0.97, "grammar.b64.relative_tok_s": 0.95}
"""The least, on a GPU."""


def host_figures(
    tokenizer: Tokenizer, paths: Sequence[Sequence[int]], runs: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of masks, steps and forks, and the runs that they are medians of."""
    threads = max(1, min(4, (os.cpu_count() or 1) // 2))
    compiler = GrammarCompiler(wrapped(tokenizer, VOCABULARY), families=threads)
    start = time.perf_counter()
    compiled = compiled_for(compiler, SCHEMA)
    compile_ms = (time.perf_counter() - start) * 1e3
    peer = XGrammar(tokenizer.backend, VOCABULARY, SCHEMA) if find_spec("xgrammar") else None
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        figures = summary("grammar", step_times(compiled, compiler.words, paths))
        figures["grammar.b64.masks_ms"] = statistics.median(batch_times(compiled, compiler.words, paths, threads))
        if peer is not None:
            figures |= summary("xgrammar", peer.step_times(paths))
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    spreads = {name: spread(values) for name, values in found.items()}
    metrics = {name: values["median"] for name, values in spreads.items()} | {"grammar.compile_ms": compile_ms}
    if peer is not None:
        metrics["xgrammar.compile_ms"] = peer.compile_ms
    return metrics, {"host": spreads, "threads": threads, "tokens": sum(map(len, paths))}


def engine_figures(
    tokenizer: Tokenizer, shape: str, device: torch.device, runs: int, tokens: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Tokens a second of a random model with and without a grammar."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    decoder = Decoder.random(replace(SHAPES[shape], vocab_size=VOCABULARY), dtype, device=device)
    config = EngineConfig(device="cuda" if device.type == "cuda" else "cpu", max_running=max(BATCHES))
    metrics: dict[str, float] = {}
    raw: dict[str, Spread] = {}
    with Engine(decoder, tokenizer=tokenizer, config=config) as engine:
        for batch in BATCHES:
            rates: dict[str, list[float]] = {"free": [], "constrained": []}
            for run in range(runs + 1):
                for name, grammar in (("free", None), ("constrained", ENDLESS)):
                    rate = _rate(engine, batch, tokens, grammar, seed=run)
                    if run:  # the first compiles and records
                        rates[name].append(rate)
            raw |= {f"grammar.b{batch}.{name}_tok_s": spread(values) for name, values in rates.items()}
            relative = spread([c / f for c, f in zip(rates["constrained"], rates["free"], strict=True)])
            raw[f"grammar.b{batch}.relative_tok_s"] = relative
        metrics = {name: values["median"] for name, values in raw.items()}
        stats = engine.stats().to_dict()
    return metrics, {"engine_runs": raw, "engine": stats, "shape": shape, "tokens_each": tokens}


def _rate(engine: Engine, batch: int, tokens: int, grammar: Grammar | None, seed: int) -> float:
    """Tokens a second of one decode call over the children of a prompt."""
    root = engine.prefill([1 + (seed * 7 + at) % 1000 for at in range(PROMPT)], seed=seed)
    kids = root.fork(batch)
    start = time.perf_counter()
    engine.decode(kids, SamplingParams(max_tokens=tokens, ignore_eos=True, grammar=grammar))
    seconds = time.perf_counter() - start
    made = sum(len(kid.tokens) for kid in kids)
    assert made == batch * tokens, [kid.error for kid in kids if kid.error]
    root.release(subtree=True)
    return made / seconds


def show(metrics: dict[str, float]) -> None:
    """Print the figures, with what they should be where that is said."""
    for name, value in metrics.items():
        verdict = ""
        if name in TARGETS:
            verdict = f"≤ {TARGETS[name]:g} {'met' if value <= TARGETS[name] else 'missed'}"
        if name in AT_LEAST:
            verdict = f"≥ {AT_LEAST[name]:g} on a GPU"
        print(f"{name:36} {value:12,.3f}  {verdict}".rstrip())


def main() -> None:
    """Read the command line, measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Time grammars: masks, steps, forks, and generation under them.")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny", help="of the model that generates")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256, help="generated by each branch")
    parser.add_argument("--documents", type=int, default=64, help="whose tokens are followed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    given = parser.parse_args()
    if min(given.runs, given.tokens, given.documents) < 1:
        parser.error("--runs, --tokens and --documents must be at least 1")
    inner = train_tokenizer()
    tokenizer = Tokenizer(inner, frozenset([inner.convert_tokens_to_ids(EOS)]), "trained here")
    paths = [tokenizer.encode(text) for text in documents(given.documents)]
    metrics, raw = host_figures(tokenizer, paths, given.runs)
    device = torch.device(given.device)
    more, more_raw = engine_figures(tokenizer, given.shape, device, given.runs, given.tokens)
    metrics |= more
    show(metrics)
    path = write_result(
        benchmark="grammar",
        subject=given.shape,
        hardware=hardware_name(device),
        metrics=metrics,
        raw=raw | more_raw,
        packages=("llguidance", *installed(("xgrammar", "triton"))),
        folder=given.out,
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""What 8 bits gain in time and memory, on random weights: only sizes matter to speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import Spread, spread
from benchmarks.machine import release_memory
from benchmarks.models import SHAPES
from benchmarks.quant_accuracy import Variant, variants
from benchmarks.steps import Lengths, step_times
from dendrite import Engine, EngineConfig, Node
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.profiling.workloads import random_prompts

ALONE = Lengths(prompt=128, tokens=512)
"""W1: one sequence."""


class Apart:
    """Branches that share nothing, so that reading their keys and values is what a step does."""

    def __init__(self, branches: int = 256, context: int = 2_048, tokens: int = 64) -> None:
        self.branches, self.context, self.tokens = branches, context, tokens

    @property
    def kv_tokens(self) -> int:
        """Room that all need together, a page each spared."""
        return self.branches * (self.context + self.tokens + 32)


def weight_times(
    shape: str, device: torch.device, runs: int, lengths: Lengths = ALONE
) -> tuple[dict[str, float], dict[str, Any]]:
    """Milliseconds a token of one sequence by variant of the weights, and their bytes, over those of bfloat16."""
    times: dict[str, Spread] = {}
    sizes: dict[str, int] = {}
    ways = [way for way in variants(device) if "kv_dtype" not in way.settings]
    for way in (Variant("bf16", {}), *ways):
        config = _config(device, kv_tokens=4_096, max_running=8, **way.settings)
        decoder = _decoder(SHAPES[shape], device, config)
        with Engine(decoder, config=config) as engine:
            times[way.name] = step_times(engine, random_prompts(decoder.config.vocab_size), 1, runs, lengths)
            sizes[way.name] = engine.stats().weight_bytes
        del engine, decoder
        release_memory(device)
        print(f"{way.name:18} {times[way.name]['median']:.4f} ms a token, {sizes[way.name]:,} bytes", flush=True)
    metrics = {}
    for name, taken in times.items():
        metrics[f"quant.{name}.ms_per_token"] = taken["median"]
        if name != "bf16":
            metrics[f"quant.{name}.time_ratio"] = taken["median"] / times["bf16"]["median"]
            metrics[f"quant.{name}.weight_ratio"] = sizes[name] / sizes["bf16"]
    return metrics, {"times": times, "weight_bytes": sizes, "prompt": lengths.prompt, "tokens": lengths.tokens}


def kv_rates(
    shape: str, device: torch.device, runs: int, apart: Apart | None = None, quantize: str | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Tokens a second of branches that share nothing, with keys and values of 16 and of 8 bits, and their bytes.

    `quantize` is the form of the weights, the same in both.
    """
    apart = apart or Apart()
    rates: dict[str, Spread] = {}
    sizes: dict[str, int] = {}
    for name, kv_dtype in (("kv16", "auto"), ("kv8", "fp8")):
        settings = {"kv_dtype": kv_dtype, "quantize": quantize}
        rates[name], sizes[name] = _apart_rates(SHAPES[shape], device, runs, apart, settings)
        release_memory(device)
        print(f"{name:18} {rates[name]['median']:,.0f} tokens/s, {sizes[name]:,} bytes a page", flush=True)
    metrics = {f"quant.{name}.tok_s": rate["median"] for name, rate in rates.items()}
    metrics["quant.kv8.rate_ratio"] = rates["kv8"]["median"] / rates["kv16"]["median"]
    metrics["quant.kv8.page_ratio"] = sizes["kv8"] / sizes["kv16"]
    raw = {
        "weights": quantize or "bf16",
        "rates": rates,
        "page_bytes": sizes,
        "branches": apart.branches,
        "context": apart.context,
    }
    return metrics, {**raw, "tokens": apart.tokens}


def _apart_rates(
    shape: ModelConfig, device: torch.device, runs: int, apart: Apart, settings: dict[str, Any]
) -> tuple[Spread, int]:
    """Tokens a second, and bytes of a page, of an engine of its own: nothing refers to its memory afterwards."""
    config = _config(device, kv_tokens=apart.kv_tokens, max_running=apart.branches, prefix_cache=False, **settings)
    decoder = _decoder(shape, device, config)
    with Engine(decoder, config=config) as engine:
        prompts = random_prompts(decoder.config.vocab_size)
        roots = [engine.prefill(prompts(apart.context)) for _ in range(apart.branches)]
        rates = spread([_rate(engine, roots, apart) for _ in range(runs + 1)][1:])
        return rates, engine.stats().page_bytes


def _rate(engine: Engine, roots: Sequence[Node], apart: Apart) -> float:
    """Tokens a second of one decoding, of a branch each below prompts that are there already."""
    kids = [root.fork()[0] for root in roots]
    start = time.perf_counter()
    engine.decode(kids, max_tokens=apart.tokens, ignore_eos=True)
    seconds = time.perf_counter() - start
    made = sum(len(kid.tokens) for kid in kids)
    if made != apart.branches * apart.tokens:
        raise RuntimeError(f"{made} tokens were generated instead of {apart.branches * apart.tokens}")
    for kid in kids:
        kid.release()
    return made / seconds


def _decoder(shape: ModelConfig, device: torch.device, config: EngineConfig) -> Decoder:
    return Decoder.random(shape, torch.bfloat16, device, quantize=config.quantize)


def _config(device: torch.device, **settings: Any) -> EngineConfig:
    return EngineConfig(device="cuda" if device.type == "cuda" else "cpu", **settings)

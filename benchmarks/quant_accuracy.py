"""What 8 bits cost in accuracy: perplexity and KL divergence against 16 bits, and the solve rate of a search."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.search_points import wilson
from dendrite import Engine, EngineConfig, run_search
from dendrite.evaluation.perplexity import Scorer, evaluate
from dendrite.evaluation.windows import Window, sliding_windows
from dendrite.model.decoder import Decoder
from dendrite.model.tokenizer import Tokenizer
from dendrite.quant.kv_scales import calibrate
from dendrite.search.budget import Budget
from dendrite.search.tasks import countdown

CALIBRATION = 64
"""Windows of other text that scales of keys and values are calibrated on."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is scored, what scales are calibrated on, and how both came about, in words."""

    windows: list[Window]
    calibration: list[list[int]]
    stated: str


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to compute with 8 bits, and the settings of an engine that does."""

    name: str
    settings: dict[str, Any]


def activations(device: torch.device) -> torch.dtype:
    """What the checkpoint's bfloat16 weights are computed in: float32 on the CPU, as its engine does."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def variants(device: torch.device) -> list[Variant]:
    """All that run here: products of MXFP8 need Blackwell, or the CPU's emulation."""
    found = [Variant(mode, {"quantize": mode}) for mode in ("fp8", "fp8_weight_only", "mxfp8", "mxfp8_weight_only")]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (10, 0):
        found = [variant for variant in found if variant.name != "mxfp8"]
    return [*found, Variant("kv8", {"kv_dtype": "fp8"}), Variant("fp8_kv8", {"quantize": "fp8", "kv_dtype": "fp8"})]


def countdown_corpus(count: int, seed: int = 0) -> Corpus:
    """Derivations of held-out problems, each a window of its own; the prompt is context, and the rest scored.

    No token precedes the prompt: the packaged model knows none.
    """
    rng = Random(f"quant {seed}")
    drawn: dict[str, list[Window]] = {"test": [], "train": []}
    wanted = {"test": count, "train": CALIBRATION}
    while any(len(drawn[split]) < wanted[split] for split in drawn):
        numbers, target, lines = countdown.draw(rng)
        split = countdown.split_of(numbers, target)
        if len(drawn.get(split, ())) < wanted.get(split, 0):
            prompt = countdown.Countdown(numbers, target).prompt.encode()
            drawn[split].append(Window((*prompt, *lines.encode(), 256), len(prompt)))
    calibration = [list(window.tokens) for window in drawn["train"]]
    return Corpus(drawn["test"], calibration, f"{count} held-out Countdown derivations, prompt as context, no BOS")


def text_corpus(tokenizer: Tokenizer, path: Path, window: int, stride: int) -> Corpus:
    """Windows of a text file but for its first part, which scales are calibrated on."""
    tokens = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
    head = min(len(tokens) // 10, CALIBRATION * window)
    calibration = [tokens[at : at + window] for at in range(0, head, window)]
    stated = f"{path.name} from token {head} on, window {window}, stride {stride}, no BOS"
    return Corpus(sliding_windows(tokens[head:], window, stride), calibration, stated)


def perplexities(folder: Path, device: torch.device, corpus: Corpus) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and raw figures of all variants, against the same weights in 16 bits."""
    longest = max(len(window.tokens) for window in corpus.windows)
    plain = Decoder.from_folder(folder, activations(device), device)
    scales = calibrate(plain, corpus.calibration)
    reference = Scorer(plain, _config(device), longest=longest)
    exact = evaluate(reference, corpus.windows)
    metrics = {"quant.bf16.ppl": exact.perplexity}
    raw: dict[str, Any] = {"corpus": corpus.stated, "scored_tokens": exact.tokens, "bf16": asdict(exact)}
    raw["activations"] = str(activations(device))
    raw["weight_bytes"] = {"bf16": plain.weights.nbytes}
    for variant in variants(device):
        config = _config(device, **variant.settings)
        decoder = Decoder.from_folder(folder, activations(device), device, config.quantize)
        scorer = Scorer(decoder, config, scales if config.kv_dtype == "fp8" else None, longest)
        found = evaluate(scorer, corpus.windows, reference)
        assert found.kl is not None
        metrics[f"quant.{variant.name}.ppl_ratio"] = found.perplexity / exact.perplexity
        metrics[f"quant.{variant.name}.kl"] = found.kl
        raw[variant.name] = asdict(found)
        raw["weight_bytes"][variant.name] = decoder.weights.nbytes
        ratio = found.perplexity / exact.perplexity
        print(
            f"{variant.name:18} perplexity × {ratio:.5f}, KL {found.kl:.2e} nats, {decoder.weights.nbytes:,} bytes",
            flush=True,
        )
    return metrics, raw


def solve_rates(
    folder: Path, device: torch.device, count: int, tokens: int, scales: Tensor | None, jobs: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Share of held-out problems that MCTS solves within so many tokens, by variant, with Wilson's interval of 95 %.

    `jobs` variants are searched at a time, each in a process of its own.
    """
    metrics, raw = {}, {}
    tried = (Variant("bf16", {}), *variants(device))
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        found = pool.map(partial(_solved, folder, device, count, tokens, scales), tried)
        for variant, solved in zip(tried, found, strict=True):
            low, high = wilson(solved, count)
            metrics[f"quant.{variant.name}.solve_rate"] = solved / count
            raw[variant.name] = {"solved": solved, "problems": count, "tokens": tokens, "interval": [low, high]}
            print(f"{variant.name:18} solves {solved} of {count} ({low:.0%} – {high:.0%})", flush=True)
    return metrics, raw


def _solved(
    folder: Path, device: torch.device, count: int, tokens: int, scales: Tensor | None, variant: Variant
) -> int:
    """How many of the problems are solved."""
    tasks = countdown.problems(count, 0, "test")
    with _engine(folder, _config(device, **variant.settings), scales) as engine:
        return sum(run_search(task, engine, "mcts", Budget(tokens=tokens)).solved for task in tasks)


def calibrated(folder: Path, device: torch.device, sequences: Sequence[list[int]]) -> Tensor:
    """Scales of the model's keys and values."""
    return calibrate(Decoder.from_folder(folder, activations(device), device), sequences)


def _engine(folder: Path, config: EngineConfig, scales: Tensor | None) -> Engine:
    from dendrite.engine.device import choose_device, choose_dtype
    from dendrite.model.value_head import ValueHead

    device = choose_device(config)
    decoder = Decoder.from_folder(folder, choose_dtype(config, device), device, config.quantize)
    head = ValueHead.from_folder(folder, decoder.config.hidden_size, dtype=decoder.dtype, device=device)
    found = scales if config.kv_dtype == "fp8" else None
    return Engine(decoder, tokenizer=Tokenizer.from_folder(folder), value_head=head, config=config, kv_scales=found)


def _config(device: torch.device, **settings: Any) -> EngineConfig:
    return EngineConfig(device="cuda" if device.type == "cuda" else "cpu", **settings)

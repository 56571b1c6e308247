"""Decoding: 64 branches on the CPU beside transformers, or the decode step of a model shape by batch size.

With `--shape NAME`: milliseconds a token of 1, 8, 64 and 256 branches of a short prompt on a model of random weights,
the share of the copy bandwidth that this comes to, and with `--profile` the time by kernel; see `benchmarks.steps`.

    python -m benchmarks.decode --device cuda --shape tinyllama [--profile] [--runs N] [--out DIR]

Without, 64 branches of one prompt on the CPU, beside transformers in the same process.

Each run takes a new random prompt of 256 tokens, so that no cache of an earlier run serves it, and is timed from the
prompt to the last of 64 × 32 sampled tokens (float32, temperature 1, no end of sequence). Three ways take turns:

- Dendrite: `prefill`, `fork(64)`, `decode`;
- transformers: `generate(num_return_sequences=64)`;
- transformers with the prompt run once and its cache expanded by hand to 64 rows, then `generate`.

    python -m benchmarks.decode [--model NAME] [--runs N] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import RESULTS, spread, write_result
from benchmarks.machine import copy_bandwidth, hardware_name, installed
from benchmarks.models import SHAPES
from benchmarks.steps import BATCHES, Lengths, kernel_times, least_bytes, print_kernels, step_times
from dendrite import Engine, EngineConfig
from dendrite.model.decoder import Decoder
from dendrite.model.folder import resolve
from dendrite.profiling.workloads import random_prompts

if TYPE_CHECKING:  # it takes seconds to import, and a shape's steps need none of it
    from transformers import GenerationConfig, PreTrainedModel

BRANCHES = 64
PROMPT = 256
TOKENS = 32


class Dendrite:
    """The way a search would do it, through the public API."""

    def __init__(self, folder: Path) -> None:
        self._engine = Engine.from_pretrained(folder, device="cpu", dtype="float32")

    def __call__(self, prompt: list[int]) -> int:
        """Generate, and return the number of tokens generated."""
        root = self._engine.prefill(prompt)
        branches = root.fork(BRANCHES)
        self._engine.decode(branches, max_tokens=TOKENS, ignore_eos=True)
        made = sum(len(branch.tokens) for branch in branches)
        root.release(subtree=True)
        return made


class Transformers:
    """`generate`, which runs the prompt once for each returned sequence."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, prompt: list[int]) -> int:
        """Generate, and return the number of tokens generated."""
        ids = torch.tensor([prompt])
        made: torch.Tensor = self._model.generate(ids, generation_config=_sampling(num_return_sequences=BRANCHES))
        return made[:, PROMPT:].numel()


class TransformersShared:
    """The prompt but for its last token run once, and its cache repeated for every sequence."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, prompt: list[int]) -> int:
        """Generate, and return the number of tokens generated."""
        from transformers import DynamicCache

        ids = torch.tensor([prompt])
        cache = DynamicCache(config=self._model.config)
        self._model(ids[:, :-1], cache=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(BRANCHES)
        rows = ids.expand(BRANCHES, -1).contiguous()
        made: torch.Tensor = self._model.generate(rows, cache=cache, generation_config=_sampling())
        return made[:, PROMPT:].numel()


def _sampling(num_return_sequences: int = 1) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        num_return_sequences=num_return_sequences,
        pad_token_id=0,
    )


def measure(ways: dict[str, Callable[[list[int]], int]], runs: int, vocabulary: int) -> dict[str, list[float]]:
    """Tokens per second of every run, by way. A first round warms up and is not kept."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    generator = torch.Generator().manual_seed(0)
    for run in range(runs + 1):
        prompt = torch.randint(vocabulary, (PROMPT,), generator=generator).tolist()
        for name, way in ways.items():
            start = time.perf_counter()
            made = way(prompt)
            seconds = time.perf_counter() - start
            if made != BRANCHES * TOKENS:
                raise RuntimeError(f"{name} generated {made} tokens instead of {BRANCHES * TOKENS}")
            if run:
                rates[name].append(made / seconds)
    return rates


def compare(model: str, runs: int, threads: int, folder: Path) -> None:
    """Measure 64 branches beside transformers, print and write the result."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    source = resolve(model)
    peer = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ways: dict[str, Callable[[list[int]], int]] = {
        "n64": Dendrite(source),
        "transformers": Transformers(peer),
        "transformers_shared": TransformersShared(peer),
    }
    with torch.inference_mode():
        rates = measure(ways, runs, peer.config.vocab_size)
    rows = {name: spread(values) for name, values in rates.items()}
    metrics = {f"decode.{name}.tok_s": row["median"] for name, row in rows.items()}
    own = rows["n64"]["median"]
    metrics["decode.speedup"] = own / rows["transformers"]["median"]
    metrics["decode.speedup_shared"] = own / rows["transformers_shared"]["median"]
    raw = {"threads": threads, "branches": BRANCHES, "prompt": PROMPT, "tokens": TOKENS, **rows}
    finish(source.name, "cpu", metrics, raw, ("transformers",), folder)


def measure_steps(
    shape: str, device: torch.device, runs: int, with_profile: bool, folder: Path, lengths: Lengths | None = None
) -> None:
    """Measure the decode step by batch size, print and write the result."""
    lengths = lengths or Lengths()
    copy_gb_s = copy_bandwidth(device)
    decoder = Decoder.random(SHAPES[shape], torch.bfloat16 if device.type == "cuda" else torch.float32, device=device)
    prompts = random_prompts(decoder.config.vocab_size)
    metrics: dict[str, float] = {}
    raw: dict[str, Any] = {"copy_gb_s": copy_gb_s, "prompt": lengths.prompt, "tokens": lengths.tokens, "runs": {}}
    config = EngineConfig(device="cuda" if device.type == "cuda" else "cpu", max_running=max(BATCHES))
    with Engine(decoder, config=config) as engine:
        for batch in BATCHES:
            times = step_times(engine, prompts, batch, runs, lengths)
            needed = least_bytes(decoder.config, decoder.dtype.itemsize, batch, lengths)
            metrics[f"decode.b{batch}.ms_per_token"] = times["median"]
            metrics[f"decode.b{batch}.tok_s"] = 1e3 * batch / times["median"]
            metrics[f"decode.b{batch}.copy_fraction"] = needed / (times["median"] * 1e6) / copy_gb_s
            raw["runs"][f"decode.b{batch}.ms_per_token"] = times
            print(f"batch {batch}: {times['median']:.3f} ms a token", flush=True)
        if with_profile:
            raw["profile"] = [kernel_times(engine, prompts, batch, lengths, device) for batch in BATCHES]
            for found in raw["profile"]:
                print_kernels(found)
        raw["engine"] = engine.stats().to_dict()
    finish(shape, hardware_name(device), metrics, raw, installed(("triton", "flashinfer-python")), folder)


def finish(
    subject: str,
    hardware: str,
    metrics: dict[str, float],
    raw: dict[str, Any],
    packages: tuple[str, ...],
    folder: Path,
) -> None:
    """Print the figures and write them down."""
    path = write_result(
        benchmark="decode",
        subject=subject,
        hardware=hardware,
        metrics=metrics,
        raw=raw,
        packages=packages,
        folder=folder,
    )
    for name, value in metrics.items():
        print(f"{name:32} {value:12,.3f}")
    print(f"written to {path}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Decode branches: beside transformers, or a model shape's step.")
    parser.add_argument("--model", default="countdown", help="a packaged model, or a Hugging Face folder")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="measure the decode step of this shape instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda goes with --shape")
    parser.add_argument("--profile", action="store_true", help="with --shape: the time by kernel too")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="without --shape")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    if given.shape is None and (given.device == "cuda" or given.profile):
        parser.error("--device cuda and --profile need --shape")
    if given.shape is None:
        compare(given.model, given.runs, given.threads, given.out)
    else:
        measure_steps(given.shape, torch.device(given.device), given.runs, given.profile, given.out)


if __name__ == "__main__":
    main()

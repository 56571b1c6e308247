"""Decode 64 branches of one prompt on the CPU, beside transformers in the same process.

Each run takes a new random prompt of 256 tokens, so that no cache of an earlier run serves it, and is timed from the
prompt to the last of 64 × 32 sampled tokens (float32, temperature 1, no end of sequence). Three ways take turns:

- Dendrite: `prefill`, `fork(64)`, `decode`;
- transformers: `generate(num_return_sequences=64)`;
- transformers with the prompt run once and its cache expanded by hand to 64 rows, then `generate`.

Run it with `python -m benchmarks.decode [--model NAME] [--runs N] [--threads N]`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel

from benchmarks.common import spread, write_result
from dendrite import Engine
from dendrite.model.folder import resolve

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
        ids = torch.tensor([prompt])
        cache = DynamicCache(config=self._model.config)
        self._model(ids[:, :-1], cache=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(BRANCHES)
        rows = ids.expand(BRANCHES, -1).contiguous()
        made: torch.Tensor = self._model.generate(rows, cache=cache, generation_config=_sampling())
        return made[:, PROMPT:].numel()


def _sampling(num_return_sequences: int = 1) -> GenerationConfig:
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


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Decode 64 branches on the CPU, beside transformers.")
    parser.add_argument("--model", default="countdown", help="a packaged model, or a Hugging Face folder")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    folder = resolve(arguments.model)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ways: dict[str, Callable[[list[int]], int]] = {
        "n64": Dendrite(folder),
        "transformers": Transformers(peer),
        "transformers_shared": TransformersShared(peer),
    }
    with torch.inference_mode():
        rates = measure(ways, arguments.runs, peer.config.vocab_size)
    rows = {name: spread(values) for name, values in rates.items()}
    metrics = {f"decode.{name}.tok_s": row["median"] for name, row in rows.items()}
    own = rows["n64"]["median"]
    metrics["decode.speedup"] = own / rows["transformers"]["median"]
    metrics["decode.speedup_shared"] = own / rows["transformers_shared"]["median"]
    path = write_result(
        benchmark="decode",
        subject=folder.name,
        hardware="cpu",
        metrics=metrics,
        raw={"threads": arguments.threads, "branches": BRANCHES, "prompt": PROMPT, "tokens": TOKENS, **rows},
        packages=("transformers",),
    )
    for name, value in metrics.items():
        print(f"{name:32} {value:10,.2f}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""Weights and KV of 8 bits: the bytes they take, and how surprised the model is by texts of its own.

Run it with `python examples/eight_bits.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dendrite import Engine, EngineConfig

PROMPT = "Numbers: 3 7 8 25. Target: 92.\n"
SETTINGS = {
    "bf16": EngineConfig(dtype="bfloat16"),
    "fp8": EngineConfig(dtype="bfloat16", quantize="fp8", kv_dtype="fp8"),
    "mxfp8 weights": EngineConfig(dtype="bfloat16", quantize="mxfp8_weight_only"),
}


@dataclass(frozen=True)
class Found:
    """Bytes allocated for weights, scales included, and for a page of KV; perplexity is per token."""

    weight_bytes: int
    page_bytes: int
    perplexity: float


def main() -> dict[str, Found]:
    """Print a line for each setting, and return what was found."""
    with Engine.from_pretrained("countdown", config=SETTINGS["bf16"]) as engine:
        branches = engine.prefill(PROMPT, seed=1).fork(64)
        engine.decode(branches, max_tokens=48, temperature=1.0)
        texts = [list(branch.tokens) for branch in branches]
    found: dict[str, Found] = {}
    for name, config in SETTINGS.items():
        with Engine.from_pretrained("countdown", config=config) as engine:
            root = engine.prefill(PROMPT)
            logprobs = [logprob for text in texts for logprob in engine.score(root, text)]
            stats = engine.stats()
            perplexity = math.exp(-sum(logprobs) / len(logprobs))
            found[name] = Found(stats.weight_bytes, stats.page_bytes, perplexity)
            print(
                f"{name:14} {stats.weight_bytes:10,} bytes of weights, {stats.page_bytes:6,} a page, "
                f"perplexity {perplexity:.4f}"
            )
    return found


if __name__ == "__main__":
    main()

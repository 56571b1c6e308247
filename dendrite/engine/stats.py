"""What an engine has done, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Running totals; the engine adds to them as it goes."""

    steps: int = 0
    prefill_tokens: int = 0
    recomputed_tokens: int = 0
    decode_tokens: int = 0
    forced_tokens: int = 0
    cached_tokens: int = 0
    retips: int = 0
    context_tokens: int = 0
    shared_tokens: int = 0
    prompts: int = 0
    prompt_hits: int = 0
    seconds_running: float = 0.0

    def count_prompt(self, cached: int) -> None:
        """A prompt has come, of which `cached` tokens were found in the prefix cache."""
        self.prompts += 1
        self.prompt_hits += cached > 0
        self.cached_tokens += cached


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine.

    Totals since it was made: `prefill_tokens` (prompt and scored tokens run through the model), `recomputed_tokens`
    (run again because their KV had been dropped), `decode_tokens` (sampled), `forced_tokens` (written because a grammar
    left no choice), `cached_tokens` (prompt tokens found in the prefix cache), `prompts` and those of them that began
    with such tokens (`prompt_hits`), `retips` (single tokens run again for their hidden state), `exported_tokens` and
    `imported_tokens` (whose KV went to, and came from, another engine), `forks`, `tail_copies`, `takeovers`,
    `preemptions`, `dropped_pages` (whose KV live nodes lost to others, to be computed again when it is needed),
    `evicted_pages` (that cached prompts have lost), `steps`, `seconds_running` (wall time inside steps). `shared_ratio`
    is the share of context tokens, over all decode steps, that was read from an ancestor's pages. On the GPU,
    `tree_bursts` and `flat_bursts` are the bursts of decode steps whose attention did and did not read shared segments
    once for several rows, and `kv_bytes_saved` what that has spared.

    Now: `pages_total`, `pages_free`, `pages_held` (by live nodes), `pages_cached` (evictable), `running`, `waiting`.
    A page holds the KV of `page_tokens` tokens in `page_bytes` bytes, the scales of FP8 keys and values take
    `kv_scale_bytes` and the weights `weight_bytes`: those of all `tensor_parallel` ranks together. `device_loop` says
    whether decoding runs many steps on the GPU at a time, replayed as graphs unless `EngineConfig.cuda_graphs` is off.
    """

    steps: int
    prefill_tokens: int
    recomputed_tokens: int
    decode_tokens: int
    cached_tokens: int
    retips: int
    forks: int
    tail_copies: int
    takeovers: int
    preemptions: int
    shared_ratio: float
    seconds_running: float
    pages_total: int
    pages_free: int
    pages_held: int
    pages_cached: int
    running: int
    waiting: int
    tree_bursts: int = 0
    flat_bursts: int = 0
    kv_bytes_saved: int = 0
    page_tokens: int = 0
    page_bytes: int = 0
    weight_bytes: int = 0
    kv_scale_bytes: int = 0
    forced_tokens: int = 0
    tensor_parallel: int = 1
    device_loop: bool = False
    prompts: int = 0
    prompt_hits: int = 0
    exported_tokens: int = 0
    imported_tokens: int = 0
    dropped_pages: int = 0
    evicted_pages: int = 0

    def to_dict(self) -> dict[str, int | float]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

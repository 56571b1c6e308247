"""The memory fraction for `benchmarks.defaults`: what each value leaves for KV, and what a load takes beside it.

On CUDA alone: the pool of an engine on the CPU is a setting, `EngineConfig.kv_tokens`.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.defaults_sweeps import Bench, Sweep
from benchmarks.machine import release_memory
from dendrite import Engine, EngineConfig
from dendrite.errors import InvalidArgument
from dendrite.profiling.workloads import w2

FRACTIONS = (0.8, 0.9, 0.95, 0.98, 0.99)
_GIB = 1 << 30
_SHORT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")


def memory_fraction(bench: Bench) -> Sweep:
    """Per value: tokens of KV, whether a load fits, and in GiB what it took beside weights and pool, and left free.

    The load is the widest decode step with and without filters, a long prompt, and a long continuation scored. Values
    rise, and the first that does not fit is the last.

    Raises:
        InvalidArgument: the device is no GPU.
    """
    device = bench.decoder.device
    if device.type != "cuda":
        raise InvalidArgument("device", device, "must be CUDA: on the CPU no fraction of the memory is taken")
    swept = Sweep({"default": EngineConfig().memory_fraction}, list(FRACTIONS))
    for fraction in FRACTIONS:
        label = f"v{round(100 * fraction)}"
        torch.cuda.reset_peak_memory_stats(device)
        failed = None
        try:
            bench.on_engine(partial(_under_load, bench, swept, label), memory_fraction=fraction)
        except RuntimeError as error:
            if not any(words in str(error) for words in _SHORT_OF_MEMORY):
                raise
            failed = " ".join(str(error).split())[:300]
        swept.put(f"{label}.fits", float(failed is None))
        if failed is not None:
            swept.raw["short_of_memory"] = {label: failed}
            release_memory(device)
            break
    swept.raw["total_gib"] = torch.cuda.mem_get_info(device)[1] / _GIB
    return swept


def _under_load(bench: Bench, swept: Sweep, label: str, engine: Engine) -> None:
    """Load an engine, and note what it took at most."""
    stats, sizes, device = engine.stats(), bench.sizes, bench.decoder.device
    swept.put(f"{label}.kv_tokens", float(stats.pages_total * stats.page_tokens))
    prompts, rows = bench.prompts(), engine.config.max_running
    w2(rows, engine, prompts, sizes)
    root = engine.prefill(prompts(max(sizes.w4_contexts)))
    engine.decode(root.fork(rows), max_tokens=8, ignore_eos=True, top_p=0.9)
    engine.score(root, prompts(engine.config.max_batch_tokens))
    root.release(subtree=True)
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    outside = total - free - torch.cuda.memory_reserved(device)  # the driver's, the kernels', other processes'
    most = torch.cuda.max_memory_reserved(device)
    pool = (stats.pages_total + 1) * stats.page_bytes  # and the scratch page
    swept.put(f"{label}.pool_gib", pool / _GIB)
    swept.put(f"{label}.beside_gib", (outside + most - pool - stats.weight_bytes) / _GIB)
    swept.put(f"{label}.free_gib", (total - outside - most) / _GIB)

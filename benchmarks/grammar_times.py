"""What single steps of a grammar cost on one thread: Dendrite's matcher on llguidance, and xgrammar beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from dendrite import Grammar
from dendrite.grammar.compiler import CompiledGrammar, GrammarCompiler
from dendrite.grammar.masks import MaskPool
from dendrite.grammar.matcher import Matcher

BRANCHES = 64
Times = dict[str, list[float]]


def step_times(compiled: CompiledGrammar, words: int, paths: Sequence[Sequence[int]]) -> Times:
    """µs of every mask, step, fork, and fork that moves, along the tokens of valid documents."""
    times: Times = {"mask": [], "consume": [], "fork": [], "copy": []}
    row = np.empty((1, words), dtype=np.int32)
    clock = time.perf_counter_ns
    for tokens in paths:
        matcher = Matcher(compiled, 0)
        for token in tokens:
            inner = matcher.state.settle()
            start = clock()
            inner.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            masked = clock()
            twin = matcher.fork()
            forked = clock()
            twin.advance(token)
            copied = clock()
            del twin
            before = clock()
            matcher.advance(token)
            times["consume"].append((clock() - before) / 1000)
            times["mask"].append((masked - start) / 1000)
            times["fork"].append((forked - masked) / 1000)
            times["copy"].append((copied - forked) / 1000)
    return times


def batch_times(compiled: CompiledGrammar, words: int, paths: Sequence[Sequence[int]], threads: int) -> list[float]:
    """Ms until the masks of 64 branches are there, step by step, as the engine asks for them.

    Branches are forks of one start that stand somewhere in different documents.
    """
    pool = MaskPool(threads, words)
    first = Matcher(compiled, 0)
    branches = [first.fork() for _ in range(BRANCHES)]
    times: list[float] = []
    for step in range(min(map(len, paths))):
        start = time.perf_counter_ns()
        pool.request(branches)
        for branch in branches:
            _ = branch.bits
        times.append((time.perf_counter_ns() - start) / 1e6)
        for at, branch in enumerate(branches):
            branch.advance(paths[at % len(paths)][step])
    pool.close()
    return times[1:]  # at the start they all share one mask


def compiled_for(compiler: GrammarCompiler, schema: dict[str, Any]) -> CompiledGrammar:
    """The schema without white space, as xgrammar is given it too."""
    return compiler.compile(Grammar(json_schema=schema, white_space=False))


class XGrammar:
    """xgrammar on the same schema, tokenizer and tokens.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, schema: dict[str, Any]) -> None:
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary)
        start = time.perf_counter()
        compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_json_schema(
            schema, any_whitespace=False, separators=(",", ":")
        )
        self.compile_ms = (time.perf_counter() - start) * 1e3
        self._make: Callable[[], Any] = partial(xgrammar.GrammarMatcher, compiled)
        self._bits = xgrammar.allocate_token_bitmask(1, vocabulary)

    def step_times(self, paths: Sequence[Sequence[int]]) -> Times:
        """As `step_times`; its fork copies at once."""
        times: Times = {"mask": [], "consume": [], "fork": []}
        clock = time.perf_counter_ns
        for tokens in paths:
            matcher = self._make()
            for token in tokens:
                start = clock()
                matcher.fill_next_token_bitmask(self._bits)
                masked = clock()
                matcher.fork()
                forked = clock()
                if not matcher.accept_token(token):
                    raise AssertionError("xgrammar refuses a token of a valid document")
                times["consume"].append((clock() - forked) / 1000)
                times["mask"].append((masked - start) / 1000)
                times["fork"].append((forked - masked) / 1000)
        return times


def summary(prefix: str, times: Times) -> dict[str, float]:
    """Median, mean and 99th percentile of each, in µs."""
    figures: dict[str, float] = {}
    for name, values in times.items():
        figures[f"{prefix}.{name}_p50_us"] = statistics.median(values)
        figures[f"{prefix}.{name}_mean_us"] = statistics.fmean(values)
        figures[f"{prefix}.{name}_p99_us"] = float(np.percentile(values, 99))
    return figures

"""The measurements of `benchmarks.quant`, in small."""

from __future__ import annotations

import torch

from benchmarks.quant_accuracy import countdown_corpus, perplexities, variants
from benchmarks.quant_speed import Apart, kv_rates, weight_times
from benchmarks.steps import Lengths
from dendrite.model.folder import resolve
from dendrite.search.tasks.countdown import split_of

CPU = torch.device("cpu")


def test_the_corpus_is_held_out_and_scores_derivations_alone() -> None:
    corpus = countdown_corpus(5)
    assert len(corpus.windows) == 5
    for window in corpus.windows:
        prompt, text = bytes(window.tokens[: window.first]).decode(), bytes(window.tokens[window.first : -1]).decode()
        numbers, target = prompt.removeprefix("Numbers: ").split(". Target: ")
        assert split_of(map(int, numbers.split()), int(target.strip(".\n"))) == "test"
        assert text.count("\n") == len(numbers.split()) - 1
        assert window.tokens[-1] == 256
    assert not {tuple(tokens) for tokens in corpus.calibration} & {window.tokens for window in corpus.windows}


def test_all_variants_stay_within_a_percent_of_the_packaged_model() -> None:
    metrics, _ = perplexities(resolve("countdown"), CPU, countdown_corpus(12))
    for variant in variants(CPU):
        assert abs(metrics[f"quant.{variant.name}.ppl_ratio"] - 1) < 0.01
        assert 0 < metrics[f"quant.{variant.name}.kl"] < 0.01


def test_times_and_bytes_are_measured_beside_16_bits() -> None:
    metrics, _ = weight_times("tiny", CPU, 1, Lengths(prompt=8, tokens=2))
    assert metrics["quant.fp8.time_ratio"] > 0
    assert 0.5 < metrics["quant.fp8.weight_ratio"] < 0.6
    rates, raw = kv_rates("tiny", CPU, 1, Apart(branches=2, context=20, tokens=2))
    assert rates["quant.kv8.page_ratio"] == 0.5
    assert raw["page_bytes"]["kv16"] > 0

"""Sampling: the law it follows, its reproducibility, and what filters and penalties remove."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.config import SamplingParams
from dendrite.engine.sampler import SamplingBatch, logprobs_of, penalise, sample, uniform

CPU = torch.device("cpu")


def noise(count: int, seed: int = 0, branch: int = 0) -> np.ndarray:
    keys = np.arange(count, dtype=np.uint64)
    return uniform(np.full(count, seed, np.uint64), np.full(count, branch, np.uint64), keys)


def draw(logits: list[float], count: int = 20_000, **settings: float) -> np.ndarray:
    rows = torch.tensor([logits]).expand(count, -1).contiguous()
    batch = SamplingBatch.of([SamplingParams(**settings)] * count, len(logits), CPU)
    return np.bincount(sample(rows, batch, noise(count)).numpy(), minlength=len(logits)) / count


def test_noise_is_uniform_and_independent_across_keys() -> None:
    values = noise(100_000)
    histogram = np.histogram(values, bins=100, range=(0, 1))[0]
    chi_square = ((histogram - 1000) ** 2 / 1000).sum()
    assert chi_square < 160  # 99 degrees of freedom: p < 1e-4 beyond
    for other in (noise(100_000, seed=1), noise(100_000, branch=1), np.roll(values, 1)):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.02


def test_noise_depends_on_each_key_alone() -> None:
    seeds, branches, positions = np.meshgrid(*[np.arange(12, dtype=np.uint64)] * 3)
    values = uniform(seeds.ravel(), branches.ravel(), positions.ravel())
    assert len(set(values.tolist())) == values.size
    assert ((values >= 0) & (values < 1)).all()


def test_frequencies_follow_the_softmax() -> None:
    logits = [0.0, 1.0, 2.0, -3.0]
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(torch.tensor(logits) / temperature, 0).numpy()
        assert np.abs(draw(logits, temperature=temperature) - expected).max() < 0.015


def test_temperature_zero_takes_the_smallest_of_the_most_likely() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    batch = SamplingBatch.of([SamplingParams(temperature=0.0)] * 2, 4, CPU)
    assert sample(logits, batch, noise(2)).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-37, 1e-45])
def test_the_lowest_temperatures_take_the_most_likely(temperature: float) -> None:
    """float32 does not hold a logit divided by them."""
    for filters in ({}, {"top_p": 0.9}, {"min_p": 0.1}):
        found = draw([20.0, 40.0, -3.0], count=50, temperature=temperature, **filters)
        assert found.tolist() == [0.0, 1.0, 0.0]


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    logits = torch.tensor([[0.0, 4.0, 0.0]] * 400)
    rows = [SamplingParams(temperature=0.0), SamplingParams(temperature=50.0)] * 200
    tokens = sample(logits, SamplingBatch.of(rows, 3, CPU), noise(400))
    assert tokens[::2].tolist() == [1] * 200
    assert set(tokens[1::2].tolist()) == {0, 1, 2}


def test_top_k_top_p_and_min_p_keep_what_they_should() -> None:
    logits = [float(x) for x in np.log([0.4, 0.3, 0.2, 0.1])]
    assert (draw(logits, top_k=2) > 0).tolist() == [True, True, False, False]
    assert (draw(logits, top_k=1) > 0).tolist() == [True, False, False, False]
    assert (draw(logits, top_p=0.65) > 0).tolist() == [True, True, False, False]
    assert (draw(logits, top_p=0.01) > 0).tolist() == [True, False, False, False]
    assert (draw(logits, min_p=0.45) > 0).tolist() == [True, True, True, False]
    assert (draw(logits, top_k=3, top_p=0.5) > 0).tolist() == [True, True, False, False]


def test_a_filter_of_one_row_leaves_the_others_alone() -> None:
    logits = torch.zeros(3000, 4)
    rows = [SamplingParams(top_k=1), SamplingParams(top_p=0.3), SamplingParams()] * 1000
    tokens = sample(logits, SamplingBatch.of(rows, 4, CPU), noise(3000))
    assert set(tokens[0::3].tolist()) == {0}
    assert set(tokens[1::3].tolist()) == {0, 1}
    assert set(tokens[2::3].tolist()) == {0, 1, 2, 3}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=40),
    st.floats(0.05, 5),
    st.integers(0, 5),
    st.floats(0.05, 1.0),
    st.floats(0, 1.0),
    st.integers(0, 2**63 - 1),
)
def test_a_drawn_token_is_never_one_that_was_removed(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = torch.tensor([logits]).repeat(8, 1)
    tokens = sample(rows, SamplingBatch.of([params] * 8, len(logits), CPU), noise(8, seed=seed)).tolist()
    scaled = torch.tensor(logits) / temperature
    order = scaled.argsort(descending=True, stable=True).tolist()
    for token in tokens:
        if top_k:
            assert token in order[:top_k]
        assert scaled[token] - scaled.max() >= np.log(max(min_p, 1e-30)) - 1e-4


@given(st.lists(st.floats(2.0**-20, 1.0, width=32), min_size=1, max_size=20))
def test_the_largest_noise_draws_a_token_too(weights: list[float]) -> None:
    logits = torch.tensor([[*weights, 0.0]]).log()
    largest = np.nextafter(np.ones(1), 0)
    assert sample(logits, SamplingBatch.of([SamplingParams()], len(weights) + 1, CPU), largest).item() < len(weights)


@given(st.floats(0.5, 2.0))
def test_a_share_of_a_total_stays_below_it(total: float) -> None:
    assert np.nextafter(1.0, 0) * total < total


def test_a_row_draws_the_same_token_whatever_stands_beside_it() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    rows = [SamplingParams(temperature=1.0)] * 64
    together = sample(logits, SamplingBatch.of(rows, 50, CPU), noise(64))
    alone = [
        sample(logits[i : i + 1], SamplingBatch.of(rows[:1], 50, CPU), noise(64)[i : i + 1]).item() for i in range(64)
    ]
    assert together.tolist() == alone


def test_penalties_by_hand() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 1.0])
    seen = torch.tensor([True, True, True, False])
    generated = torch.tensor([0.0, 3.0, 1.0, 0.0])
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    assert penalise(logits, params, seen, generated).tolist() == [1.0, -4.0 - 0.75 - 0.5, 0.5 - 0.25 - 0.5, 1.0]


def test_logprobs_are_those_of_the_plain_softmax() -> None:
    logits = torch.randn(5, 9)
    tokens = torch.tensor([0, 3, 8, 8, 1])
    expected = torch.log_softmax(logits, -1)[torch.arange(5), tokens]
    assert logprobs_of(logits, tokens).tolist() == pytest.approx(expected.tolist(), abs=1e-6)

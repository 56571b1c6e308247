"""Sampling on the device against the host's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from dendrite.config import SamplingParams
from dendrite.engine.sampler import SamplingBatch, logprobs_of, uniform
from dendrite.engine.sampler import sample as sample_on_host
from dendrite.errors import InvalidArgument
from dendrite.grammar.compiler import bits_of
from dendrite.grammar.masks import masked
from dendrite.kernels import sampling
from dendrite.kernels.sampling import STOP_IDS, TokenMasks, advance, sample, sampling_workspace

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPACITY = 3  # rows of the rings beyond those of the batch


@triton.jit
def uniform_kernel(seeds, branches, positions, out):
    row = tl.program_id(0)
    noise = sampling._uniform(tl.load(seeds + row), tl.load(branches + row), tl.load(positions + row))
    tl.store(out + row, noise)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@settings(max_examples=20)
@given(
    keys=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)),
        min_size=1,
        max_size=5,
    )
)
def test_noise_is_the_hosts_bit_for_bit(keys: list[tuple[int, int, int]]) -> None:
    columns = np.array(keys, dtype=np.uint64).T.copy()
    seeds, branches = (torch.from_numpy(column.view(np.int64)).to(DEVICE) for column in columns[:2])
    positions = torch.from_numpy(columns[2].astype(np.int32)).to(DEVICE)
    out = torch.empty(len(keys), dtype=torch.float64, device=DEVICE)
    uniform_kernel[(len(keys),)](seeds, branches, positions, out)
    assert out.tolist() == uniform(*columns).tolist()


@dataclass
class Draws:
    """What `sample` wrote."""

    token: Tensor
    stopping: Tensor
    tokens: Tensor
    logprobs: Tensor


def draw(
    logits: Tensor,
    filtered: Tensor | None = None,
    *,
    step: int = 1,
    masks: TokenMasks | None = None,
    pdl: bool = False,
    **state: Any,
) -> Draws:
    """Run `sample` with rings of three steps; what `state` leaves out has a default."""
    rows, vocabulary = logits.shape

    def column(name: str, default: Any, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(state.pop(name, default), dtype=dtype).expand(rows).contiguous().to(logits.device)

    temperature = column("temperature", 1.0, torch.float32)
    seeds = column("seeds", torch.arange(rows), torch.int64)
    branches = column("branches", 7, torch.int64)
    positions = column("positions", 100, torch.int32)
    alive = column("alive", 1, torch.int32)
    stop_ids = torch.full((rows, STOP_IDS), -1, dtype=torch.int32, device=logits.device)
    for row, stops in enumerate(state.pop("stops", [])):
        stop_ids[row, : len(stops)] = torch.tensor(stops, dtype=torch.int32)
    assert not state
    token = torch.full((rows,), -9, dtype=torch.int32, device=logits.device)
    stopping = torch.full_like(token, -9)
    tokens = torch.full((3, rows + CAPACITY), -9, dtype=torch.int32, device=logits.device)
    logprobs = torch.full((3, rows + CAPACITY), -9.0, device=logits.device)
    workspace = sampling_workspace(rows, vocabulary, logits.device)
    workspace.fill_(torch.nan)
    sample(
        logits,
        logits if filtered is None else filtered,
        temperature,
        seeds,
        branches,
        positions,
        stop_ids,
        alive,
        torch.tensor([step], dtype=torch.int32, device=logits.device),
        workspace,
        token,
        stopping,
        tokens,
        logprobs,
        masks=masks,
        pdl=pdl,
    )
    others = [index for index in range(3) if index != step]
    assert (tokens[others] == -9).all()
    assert (tokens[step, rows:] == -9).all()
    assert (logprobs[others] == -9.0).all()
    return Draws(token, stopping, tokens[step, :rows], logprobs[step, :rows])


def on_host(logits: Tensor, temperatures: list[float], seeds: Tensor, branch: int, position: int) -> Tensor:
    rows = len(temperatures)
    settings_of_rows = [SamplingParams(temperature=temperature) for temperature in temperatures]
    batch = SamplingBatch.of(settings_of_rows, logits.shape[1], logits.device)
    keys = seeds.numpy().view(np.uint64), np.full(rows, branch, np.uint64), np.full(rows, position, np.uint64)
    return sample_on_host(logits, batch, uniform(*keys))


@pytest.mark.parametrize("vocabulary", [1, 5, 1023, 1024, 1025, 3000])
def test_tokens_and_logprobs_are_the_hosts(vocabulary: int) -> None:
    temperatures = [1.0, 0.0, 0.7, 1.5, 1.0]
    seeds = torch.tensor([3, -4, 5, 2**62, 7])
    logits = torch.randn(5, vocabulary) * 3
    draws = draw(logits.to(DEVICE), temperature=temperatures, seeds=seeds)
    expected = on_host(logits, temperatures, seeds, 7, 100)
    assert draws.token.tolist() == expected.tolist()
    assert draws.tokens.tolist() == expected.tolist()
    torch.testing.assert_close(draws.logprobs.cpu(), logprobs_of(logits, expected), rtol=1e-5, atol=1e-5)


def test_the_most_likely_token_with_the_smallest_id_wins_at_temperature_zero() -> None:
    logits = torch.zeros(3, 2100)
    logits[0, [2050, 1500, 1499]] = 4.0
    logits[1, 2099] = 1.0
    assert draw(logits.to(DEVICE), temperature=0.0).token.tolist() == [1499, 2099, 0]


def test_many_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125])
    count = 120
    logits = probabilities.log().expand(count, 5).contiguous()
    drawn = draw(logits.to(DEVICE), seeds=torch.arange(count) * 7919).token.cpu()
    seen = torch.bincount(drawn, minlength=5)
    assert seen[1] == 0
    likely = probabilities > 0
    expected = count * probabilities[likely]
    assert ((seen[likely] - expected) ** 2 / expected).sum() < 21.1  # χ² of 3 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_what_is_filtered_out_is_never_drawn_but_counts_in_the_logprob(temperature: float) -> None:
    logits = torch.randn(12, 2500)
    allowed = torch.tensor([0, 1030, 2499])
    filtered = torch.full_like(logits, -torch.inf)
    filtered[:, allowed] = logits[:, allowed]
    draws = draw(logits.to(DEVICE), filtered.to(DEVICE), temperature=temperature)
    drawn = draws.token.long().cpu()
    assert torch.isin(drawn, allowed).all()
    torch.testing.assert_close(draws.logprobs.cpu(), logprobs_of(logits, drawn), rtol=1e-5, atol=1e-5)


@triton.jit
def invert_kernel(masses, noise, found, rest, size: tl.constexpr):
    index = tl.arange(0, size)
    picked, left = sampling._invert(tl.load(masses + index), index, tl.load(noise))
    tl.store(found, picked)
    tl.store(rest, left)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1 - 2.0**-53, 1.0, 1 + 1e-9, -1e-9])
def test_only_what_has_mass_is_found_whatever_rounding_does(noise: float) -> None:
    masses = torch.tensor([0.0, 0.2, 0.0, 0.3, 1e-300, 0.1, 0.0, 0.0], dtype=torch.float64, device=DEVICE)
    at = torch.tensor([noise], dtype=torch.float64, device=DEVICE)
    found, rest = torch.zeros(1, dtype=torch.int32, device=DEVICE), torch.zeros_like(at)
    invert_kernel[(1,)](masses, at, found, rest, 8)
    assert masses[found.item()] > 0
    if 0 <= noise < 1:
        before = masses[: found.item()].sum()
        torch.testing.assert_close(before + rest[0] * masses[found.item()], noise * masses.sum())


def test_a_stop_id_is_recognised_and_padding_is_not() -> None:
    logits = torch.zeros(4, 40)
    logits[:, 17] = 50.0
    draws = draw(logits.to(DEVICE), stops=[[17], [], [3, 4, 17], [16, 18]])
    assert draws.token.tolist() == [17] * 4
    assert draws.stopping.tolist() == [1, 0, 1, 0]


def test_a_dead_row_keeps_its_token_and_leaves_a_mark() -> None:
    logits = torch.randn(3, 40)
    logits[1] = torch.nan
    draws = draw(logits.to(DEVICE), alive=torch.tensor([1, 0, 1]), stops=[[], list(range(8)), []])
    assert draws.token[1] == -9
    assert draws.tokens[1] == -1
    assert draws.logprobs[1] == 0
    assert draws.stopping.tolist() == [0, 0, 0]
    assert (draws.token[[0, 2]] >= 0).all()


@pytest.mark.parametrize("vocabulary", [40, 1024, 3001])
def test_masks_are_applied_before_anything_is_drawn(vocabulary: int) -> None:
    noise = np.random.default_rng(vocabulary)
    raw = torch.from_numpy(noise.normal(0, 3, (6, vocabulary)).astype(np.float32))
    bits = [bits_of(noise.permutation(vocabulary)[: 1 + vocabulary // 9].tolist(), vocabulary) for _ in raw]
    flags, temperatures = [1, 0, 1, 1, 0, 1], [1.0, 1.0, 0.0, 0.7, 0.0, 1.5]
    seeds = torch.arange(6)
    rows = [row for row, flag in enumerate(flags) if flag]
    expected = masked(raw, rows, [bits[row] for row in rows])
    masks = TokenMasks(
        torch.from_numpy(np.stack(bits)).to(DEVICE),
        torch.tensor(flags, dtype=torch.int32, device=DEVICE),
        torch.full((6,), torch.nan, device=DEVICE),
    )
    logits = raw.clone().to(DEVICE)
    draws = draw(logits, temperature=temperatures, seeds=seeds, masks=masks)
    assert torch.equal(logits.cpu(), expected)
    assert draws.token.tolist() == on_host(expected, temperatures, seeds, 7, 100).tolist()
    torch.testing.assert_close(draws.logprobs.cpu(), logprobs_of(expected, draws.token.long().cpu()))
    mass = (expected.double().logsumexp(1) - raw.double().logsumexp(1)).float()
    torch.testing.assert_close(masks.log_mass.cpu(), mass, atol=1e-5, rtol=1e-5)


def test_masks_beside_filtered_logits_are_refused() -> None:
    one = torch.ones(1, dtype=torch.int32)
    masks = TokenMasks(one[:, None], one, torch.zeros(1))
    with pytest.raises(InvalidArgument, match="masks"):
        draw(torch.zeros(1, 8), torch.zeros(1, 8), masks=masks)


def test_a_wrong_number_of_stop_ids_is_refused() -> None:
    one = torch.zeros(1, dtype=torch.int32)
    logits = torch.zeros(1, 8)
    rest = [one, one, one, torch.zeros(1, 4, dtype=torch.int32), one, one, sampling_workspace(1, 8, "cpu")]
    with pytest.raises(InvalidArgument, match="stop_ids"):
        sample(logits, logits, torch.ones(1), *rest, one, one, one, logits)


def test_advance_moves_the_living_and_stops_the_stopping() -> None:
    alive, stopping = (torch.tensor(row, dtype=torch.int32, device=DEVICE) for row in ([1, 1, 0], [0, 1, 0]))
    positions, step = (torch.tensor(row, dtype=torch.int32, device=DEVICE) for row in ([5, 6, 7], [3]))
    advance(alive, stopping, positions, step)
    assert alive.tolist() == [1, 0, 0]
    assert positions.tolist() == [6, 7, 7]
    assert step.tolist() == [4]


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [32000, 128256])
@pytest.mark.parametrize("pdl", [False, True])
def test_real_vocabularies(vocabulary: int, pdl: bool) -> None:
    rows = 64
    temperatures = [0.0 if row % 8 == 0 else 0.5 + row / 64 for row in range(rows)]
    seeds = torch.arange(rows) * 12345
    logits = torch.randn(rows, vocabulary) * 2
    draws = draw(logits.cuda(), temperature=temperatures, seeds=seeds, pdl=pdl)
    expected = on_host(logits, temperatures, seeds, 7, 100)
    drawn = draws.token.long().cpu()
    # A draw that falls on the edge between two tokens may go either way.
    noise = torch.from_numpy(uniform(*(np.asarray(key, np.uint64) for key in (seeds, [7] * rows, [100] * rows))))
    for row in (drawn != expected).nonzero()[:, 0].tolist():
        assert temperatures[row] > 0
        cumulative = (logits[row].double() / temperatures[row]).softmax(0).cumsum(0)
        token = int(drawn[row])
        assert cumulative[token] - noise[row] > -1e-6
        assert token == 0 or cumulative[token - 1] - noise[row] < 1e-6
    torch.testing.assert_close(draws.logprobs.cpu(), logprobs_of(logits, drawn), rtol=1e-4, atol=1e-4)

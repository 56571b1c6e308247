"""What the device is told of a batch, and how its filters agree with the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dendrite.config import SamplingParams
from dendrite.engine.generation import Generation
from dendrite.engine.sampler import SamplingBatch, filtered
from dendrite.kv.cache import KvCache

if TYPE_CHECKING:
    from dendrite.engine.device_rows import DeviceRows

pytest.importorskip("triton")

VOCABULARY = 61


def generation(
    params: SamplingParams, tokens: int = 3, seed: int = 0, stop_ids: frozenset[int] = frozenset()
) -> Generation:
    root = KvCache(8).new_tree(list(range(tokens)), tree_id=0, seed=0, detokenize=str)
    root.tip = 5
    return Generation(root, params, seed, 2, 0.0, 0, None, stop_ids, tip=4)


@pytest.fixture
def rows() -> DeviceRows:
    from dendrite.engine.device_rows import DeviceRows

    return DeviceRows(4, VOCABULARY, torch.device("cpu"))


def test_rows_are_described_and_those_of_the_padding_are_quiet(rows: DeviceRows) -> None:
    rows.fill([generation(SamplingParams(), seed=index) for index in range(4)], 4)
    full = SamplingParams(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
    rows.fill([generation(full, 6, 2**64 - 1, frozenset({9, 3})), generation(SamplingParams())], 4)
    told = rows.device
    assert told["alive"].tolist() == [1, 1, 0, 0]
    assert told["positions"][:2].tolist() == [6, 3]
    assert (told["from"][:2].tolist(), told["to"][:2].tolist()) == ([4, 4], [5, 5])
    assert told["seeds"][0].item() == -1  # all 64 bits set
    assert told["temperature"][:2].tolist() == [0.5, 1.0]
    assert told["top_k"][:2].tolist() == [7, VOCABULARY]
    assert told["top_p"][:2, 0].tolist() == pytest.approx([0.9, 1.0])
    assert told["stop_ids"][0, :3].tolist() == [3, 9, -1]
    assert (told["stop_ids"][1] == -1).all()
    assert not told["constrained"].any()


def test_more_stop_ids_than_fit_are_left_to_the_host(rows: DeviceRows) -> None:
    rows.fill([generation(SamplingParams(), stop_ids=frozenset(range(50)))], 1)
    kept = rows.device["stop_ids"].shape[1]
    assert kept < 50
    assert rows.device["stop_ids"][0].tolist() == list(range(kept))


def test_silent_rows_do_nothing_and_begin_at_the_first_step(rows: DeviceRows) -> None:
    rows.fill([generation(SamplingParams())], 2)
    rows.device["step"].fill_(3)
    rows.silence()
    assert not rows.device["alive"].any()
    assert not rows.device["step"].any()


def test_filters_are_those_of_the_host(rows: DeviceRows) -> None:
    settings = [
        SamplingParams(temperature=0.5, top_k=5),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.3),
        SamplingParams(temperature=0.0, top_k=3),
    ]
    rows.fill([generation(params) for params in settings], 4)
    logits = 4 * torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    kept, temperature = rows.filtered(logits)
    assert temperature.tolist() == [1.0, 1.0, 1.0, 0.0]
    batch = SamplingBatch.of(settings, VOCABULARY, logits.device)
    assert batch.temperature is not None
    torch.testing.assert_close(kept, filtered(logits / batch.temperature, batch))
    assert (kept[0] > -torch.inf).sum() == 5

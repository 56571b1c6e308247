"""A small random engine, and the oracle that its answers are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.model.decoder import Decoder
from tests.recompute import logits_by_recomputation
from tests.tiny_config import TINY


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return Decoder.random(TINY, seed=3)


@pytest.fixture
def make_engine(decoder: Decoder) -> Iterator[Callable[..., Engine]]:
    """Builds engines whose every step is followed by a check of the KV invariants."""
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        config = EngineConfig(**{"kv_tokens": 4096, "debug_checks": True, "device": "cpu", **settings})
        made.append(Engine(decoder, config=config))
        return made[-1]

    yield make
    for engine in made:
        engine.check()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture(scope="session")
def recompute(decoder: Decoder) -> Callable[[list[int]], torch.Tensor]:
    """See `tests.recompute`."""
    return partial(logits_by_recomputation, decoder)

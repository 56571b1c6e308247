"""A small random engine, and the oracle that its answers are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.engine import core
from dendrite.engine.engine import Engine
from dendrite.model.decoder import Decoder
from tests.dendrite.engine.host_loop import HostLoop
from tests.recompute import logits_by_recomputation
from tests.tiny_config import TINY
from tests.tiny_model import write_tiny_model


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


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of random weights with a tokenizer, whose tokens are bytes."""
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def make_tiny_engine(tiny_folder: str) -> Iterator[Callable[..., Engine]]:
    """Like `make_engine`, with the tokenizer that grammars need."""
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        settings = {"device": "cpu", "kv_tokens": 4096, "debug_checks": True, **settings}
        made.append(Engine.from_pretrained(tiny_folder, **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.check()
        engine.close()


@pytest.fixture(params=["steps", "bursts"])
def tiny_engine(
    request: pytest.FixtureRequest, make_tiny_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> Engine:
    """Token by token, and in bursts as on the GPU, where forced tokens are sampled like others unless they are many."""
    if request.param == "bursts":
        monkeypatch.setattr(core, "make_device_loop", HostLoop)
    return make_tiny_engine()

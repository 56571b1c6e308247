"""Grammars in the device loop: by Triton's interpreter here, and on a GPU with graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dendrite import Engine, EngineConfig, Grammar, Node, SamplingParams
from dendrite.engine import core
from dendrite.model import linear
from dendrite.model.decoder import Decoder
from dendrite.model.tokenizer import Tokenizer
from tests.tiny_config import TINY
from tests.tiny_model import write_tiny_model

pytest.importorskip("triton")

SHAPE = replace(TINY, num_layers=1, hidden_size=64, head_dim=16, vocab_size=264, max_context=160)
DIGITS = Grammar(regex="[0-9]{4}")
WORDS = Grammar(json_schema={"enum": ["yes", "no", "perhaps"]})
FILTERED = SamplingParams(max_tokens=5, temperature=1.5, top_k=4, top_p=0.9, grammar=DIGITS)
MIXED = (
    SamplingParams(max_tokens=4, temperature=1.5, grammar=DIGITS),
    SamplingParams(max_tokens=4, temperature=1.5),
    SamplingParams(max_tokens=4, temperature=0.0, grammar=WORDS),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Tokenizer.from_folder(folder)


@pytest.fixture
def make_engine(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bool], Engine]]:
    """Engines with and without the device loop, on the CPU or the GPU."""
    from dendrite.engine.device_loop import DeviceLoop

    made: list[Engine] = []

    def make(device: str, loop: bool) -> Engine:
        monkeypatch.setattr(core, "make_device_loop", DeviceLoop if loop else lambda *_: None)
        if device == "cpu":
            monkeypatch.setattr(linear, "_can_pack", lambda weight: False)
        decoder = Decoder.random(SHAPE, torch.float32, seed=3, device=torch.device(device))
        config = EngineConfig(
            kv_tokens=1024, page_size=8, max_running=8, max_burst=4, device=device, dtype="float32", debug_checks=True
        )
        made.append(Engine(decoder, tokenizer=tokenizer, config=config))
        return made[-1]

    yield make
    for engine in made:
        engine.check()
        engine.close()


def generate(engine: Engine, settings: tuple[SamplingParams, ...]) -> list[Node]:
    kids = engine.prefill(list(range(1, 20)), seed=5).fork(len(settings))
    for kid, params in zip(kids, settings, strict=True):
        engine.submit(kid, params)
    while engine.has_work:
        engine.step()
    return kids


def compare(made: list[Node], expected: list[Node]) -> None:
    for node, other in zip(made, expected, strict=True):
        assert node.tokens == other.tokens
        assert node.finish_reason == other.finish_reason
        assert node.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert node.raw_logprobs == pytest.approx(other.raw_logprobs, abs=1e-3)


def test_a_mixed_batch_is_that_of_the_plain_path(make_engine: Callable[[str, bool], Engine]) -> None:
    made, expected = (generate(make_engine("cpu", loop), MIXED) for loop in (True, False))
    compare(made, expected)
    assert made[0].text.isdigit()
    assert made[2].text in {'"yes"', '"no"', '"perhaps"'} or made[2].finish_reason == "length"
    assert not made[1].raw_logprobs


@pytest.mark.slow
def test_filters_see_what_the_grammar_allows(make_engine: Callable[[str, bool], Engine]) -> None:
    made, expected = (generate(make_engine("cpu", loop), (FILTERED, FILTERED)) for loop in (True, False))
    compare(made, expected)
    assert all(node.text.isdigit() for node in made)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [MIXED, (FILTERED, FILTERED), MIXED * 2], ids=["mixed", "filtered", "six rows"])
def test_on_a_gpu_too(make_engine: Callable[[str, bool], Engine], settings: tuple[SamplingParams, ...]) -> None:
    engine = make_engine("cuda", True)
    expected = generate(make_engine("cuda", False), settings)
    for _ in range(2):  # the second time graphs are there
        compare(generate(engine, settings), expected)


@pytest.mark.gpu
def test_rows_without_a_grammar_burst_again_once_the_others_have_ended(
    make_engine: Callable[[str, bool], Engine],
) -> None:
    engine = make_engine("cuda", True)
    kids = engine.prefill(list(range(1, 20)), seed=5).fork(2)
    engine.submit(kids[0], SamplingParams(max_tokens=5, grammar=DIGITS))
    engine.submit(kids[1], SamplingParams(max_tokens=40))
    steps = engine.stats().steps
    while engine.has_work:
        engine.step()
    assert kids[0].text.isdigit()
    assert engine.stats().steps - steps < 25
    (alone,) = engine.prefill(list(range(1, 20)), seed=5).fork(2)[1:]
    engine.decode(alone, max_tokens=40)
    assert alone.tokens == kids[1].tokens

"""Engines with 8-bit weights and FP8 keys and values: a fork is a recomputation there too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument, KvFormatMismatch
from dendrite.kv.node import Node
from dendrite.model.decoder import Decoder
from dendrite.quant.formats import E4M3
from dendrite.quant.kv_scales import calibrate
from dendrite.quant.scheme import QuantizeMode
from tests.recompute import logits_by_recomputation
from tests.tiny_config import TINY

SHAPE = replace(TINY, num_layers=2, hidden_size=64, intermediate_size=96, head_dim=16)
PROMPT = list(range(3, 40))
MODES: tuple[QuantizeMode | None, ...] = (None, "fp8", "fp8_weight_only", "mxfp8", "mxfp8_weight_only")


def make_engine(decoder: Decoder, scales: Tensor | None = None, **settings: Any) -> Engine:
    values = {"kv_tokens": 1024, "page_size": 8, "device": "cpu", "debug_checks": True, **settings}
    return Engine(decoder, config=EngineConfig.model_validate(values), kv_scales=scales)


def assert_is_recomputation(decoder: Decoder, node: Node, scales: Tensor | None = None) -> None:
    """The log-probabilities on the edges are those of one prefill in a storage of its own."""
    fresh = logits_by_recomputation(decoder, node.path_tokens, E4M3, scales).log_softmax(-1)
    first = node.length - len(node.logprobs)
    assert node.logprobs
    for at, logprob in enumerate(node.logprobs, start=first):
        assert fresh[at - 1, node.path_tokens[at]].item() == pytest.approx(logprob, abs=2e-3)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_fork_over_fp8_is_a_recomputation(mode: QuantizeMode | None, scaled: bool) -> None:
    decoder = Decoder.random(SHAPE, seed=1, quantize=mode)
    scales = calibrate(decoder, [PROMPT]) if scaled else None
    engine = make_engine(decoder, scales, kv_dtype="fp8", quantize=mode)
    root = engine.prefill(PROMPT)
    kids = root.fork(3)
    engine.decode(kids, max_tokens=13, temperature=1.0)  # tails are copied: the prompt ends inside a page
    grandkids = kids[0].at(4).fork(2)
    engine.decode(grandkids, max_tokens=9, temperature=1.0)
    assert engine.stats().tail_copies > 0
    for node in (*kids, *grandkids):
        assert_is_recomputation(decoder, node, scales)


def test_fp8_pages_take_a_quarter_of_float32_and_weights_what_they_say() -> None:
    plain = make_engine(Decoder.random(SHAPE))
    small = make_engine(Decoder.random(SHAPE, quantize="fp8"), kv_dtype="fp8", quantize="fp8")
    assert small.stats().page_bytes * 4 == plain.stats().page_bytes
    weights = small._runner.decoder.weights
    matrices = [
        weights.embedding,
        *(linear.weight for layer in weights.layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)),
        weights.lm_head.weight,
    ]
    assert all(matrix.dtype == E4M3 for matrix in matrices)
    elements = sum(matrix.numel() for matrix in matrices)
    rows = sum(matrix.shape[0] for matrix in matrices)
    norms = 5 * SHAPE.hidden_size
    assert small.stats().weight_bytes == elements + 4 * rows + 4 * norms


def test_a_tied_embedding_is_counted_once() -> None:
    tied = Decoder.random(replace(SHAPE, tie_embeddings=True), quantize="mxfp8").weights
    apart = Decoder.random(SHAPE, quantize="mxfp8").weights
    assert tied.lm_head.weight.data_ptr() == tied.embedding.data_ptr()
    assert apart.nbytes - tied.nbytes == SHAPE.vocab_size * (SHAPE.hidden_size + SHAPE.hidden_size // 32)


@pytest.mark.parametrize("mode", MODES[1:])
def test_quantised_weights_give_nearly_the_same_logits(mode: QuantizeMode) -> None:
    plain, small = Decoder.random(SHAPE, seed=2), Decoder.random(SHAPE, seed=2, quantize=mode)
    expected, found = (logits_by_recomputation(decoder, PROMPT) for decoder in (plain, small))
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.12


def test_an_imported_path_is_continued_over_fp8() -> None:
    decoder = Decoder.random(SHAPE, seed=1)
    scales = calibrate(decoder, [PROMPT])
    here, there = (make_engine(decoder, scales, kv_dtype="fp8", page_size=size) for size in (8, 16))
    part = here.export_path(here.prefill(PROMPT))
    assert part.kv.nbytes == len(PROMPT) * part.format.token_bytes == len(PROMPT) * there._pages.token_bytes
    copy = there.import_path(part)
    assert (there.export_path(copy).kv == part.kv).all()
    kids = copy.fork(2)
    there.decode(kids, max_tokens=7, temperature=1.0)
    for node in kids:
        assert_is_recomputation(decoder, node, scales)


def test_keys_and_values_of_another_type_scale_or_product_are_refused() -> None:
    decoder = Decoder.random(SHAPE, seed=1, quantize="fp8")
    scales = calibrate(decoder, [PROMPT])
    here = make_engine(decoder, scales, kv_dtype="fp8")
    part = here.export_path(here.prefill(PROMPT))
    others = {
        "kv_dtype": make_engine(decoder),
        "kv_scales": make_engine(decoder, scales * 2, kv_dtype="fp8"),
        "model": make_engine(Decoder.random(SHAPE, seed=1, quantize="fp8_weight_only"), scales, kv_dtype="fp8"),
    }
    for field, there in others.items():
        with pytest.raises(KvFormatMismatch) as caught:
            there.import_path(part)
        assert caught.value.field == field
        assert there.stats().pages_held == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"quantize": "fp8"}, "quantize"), ({"quantize": "int4"}, "quantize"), ({"kv_dtype": "int8"}, "kv_dtype")],
)
def test_settings_that_are_not_met_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidArgument, ValueError), match=field):
        make_engine(Decoder.random(SHAPE), **settings)


def test_scales_without_fp8_are_refused() -> None:
    decoder = Decoder.random(SHAPE)
    with pytest.raises(InvalidArgument, match="scales"):
        make_engine(decoder, calibrate(decoder, [PROMPT]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fp8_weight_only", "mxfp8_weight_only"])
def test_the_device_loop_runs_the_same_numbers(mode: QuantizeMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, one row and several, with FP8 keys and values."""
    pytest.importorskip("triton")
    from dendrite.engine import core
    from dendrite.engine.device_loop import DeviceLoop

    shape = replace(SHAPE, num_layers=1, vocab_size=61)
    decoder = Decoder.random(shape, seed=3, quantize=mode)
    scales = calibrate(decoder, [PROMPT])
    monkeypatch.setattr(core, "make_device_loop", DeviceLoop)
    engine = make_engine(decoder, scales, kv_dtype="fp8", quantize=mode, max_running=4, max_burst=4)
    root = engine.prefill(PROMPT)
    for count in (1, 3):
        kids = root.fork(count)
        engine.decode(kids, max_tokens=5, temperature=1.0)
        for kid in kids:
            assert_is_recomputation(decoder, kid, scales)

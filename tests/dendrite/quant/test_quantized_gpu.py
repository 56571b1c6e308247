"""8-bit products, KV and whole engines on a GPU, against the same numbers on the CPU."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument
from dendrite.model.decoder import Decoder
from dendrite.quant.formats import E4M3
from dendrite.quant.kv_scales import calibrate
from dendrite.quant.linear import QuantizedLinear
from dendrite.quant.linear_fp8 import Fp8Linear
from dendrite.quant.linear_mx import MxLinear
from dendrite.quant.scheme import QuantizeMode
from dendrite.quant.weights import by_mx_blocks, by_rows
from tests.recompute import logits_by_recomputation
from tests.tiny_config import TINY

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

SHAPE = replace(
    TINY,
    hidden_size=512,
    intermediate_size=1024,
    num_layers=3,
    num_heads=8,
    head_dim=64,
    vocab_size=1000,
    max_context=2048,
)
ROWS = [1, 2, 17, 128, 129, 500]


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float().cpu() - expected).norm() / expected.norm())


def inputs(rows: int, size: int = 1024, columns: int = 768) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, size, generator=noise).bfloat16()
    return x, torch.randn(columns, size, generator=noise) / size**0.5, torch.randn(columns, generator=noise).bfloat16()


def on_gpu(weight: Any) -> Any:
    scales = replace(weight.scales, values=weight.scales.values.cuda())
    return replace(weight, elements=weight.elements.cuda(), scales=scales)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("way", [by_rows, by_mx_blocks])
def test_weight_only_products_of_any_number_of_rows(rows: int, way: Any) -> None:
    x, weight, bias = inputs(rows)
    quantized = way(weight)
    expected = F.linear(x.float(), quantized.dequantize(torch.float32), bias.float())
    linear = QuantizedLinear(on_gpu(quantized), bias.cuda())
    out = torch.empty(rows, 768, dtype=torch.bfloat16, device="cuda")
    linear.into(x.cuda(), out)
    assert deviation(linear(x.cuda()), expected) < 5e-3
    assert deviation(out, expected) < 5e-3


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("static", [False, True])
def test_fp8_products_are_those_of_the_cpu(rows: int, static: bool) -> None:
    x, weight, bias = inputs(rows)
    scale = torch.tensor(0.01) if static else None
    expected = Fp8Linear(by_rows(weight), bias.float(), scale)(x.float())
    on_cuda = None if scale is None else scale.cuda()
    assert deviation(Fp8Linear(on_gpu(by_rows(weight)), bias.cuda(), on_cuda)(x.cuda()), expected) < 1e-2


@pytest.mark.parametrize("rows", ROWS)
def test_mxfp8_products_are_those_of_the_cpu(rows: int) -> None:
    if torch.cuda.get_device_capability() < (10, 0):
        pytest.skip("MXFP8 products need Blackwell")
    x, weight, bias = inputs(rows)
    expected = MxLinear(by_mx_blocks(weight), bias.float())(x.float())
    assert deviation(MxLinear(on_gpu(by_mx_blocks(weight)), bias.cuda())(x.cuda()), expected) < 1e-2


def test_mxfp8_products_are_refused_before_blackwell() -> None:
    if torch.cuda.get_device_capability() >= (10, 0):
        pytest.skip("this GPU has them")
    with pytest.raises(InvalidArgument, match="mxfp8_weight_only"):
        Decoder.random(SHAPE, torch.bfloat16, "cuda", quantize="mxfp8")


def test_fp8_keys_of_a_head_size_without_a_kernel_are_refused() -> None:
    decoder = Decoder.random(replace(SHAPE, head_dim=80), torch.bfloat16, "cuda")
    with pytest.raises(InvalidArgument, match="use auto"):
        Engine(decoder, config=EngineConfig(device="cuda", kv_tokens=1024, kv_dtype="fp8"))


@pytest.mark.parametrize("mode", [None, "fp8", "fp8_weight_only", "mxfp8_weight_only"])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("rows", [1, 5, 140])
def test_an_engine_s_forks_are_recomputations(mode: QuantizeMode | None, kv_dtype: str, rows: int) -> None:
    """One row, some, and enough for the wide products: log-probabilities against the same weights on the CPU."""
    plain = Decoder.random(SHAPE, torch.bfloat16, seed=5)
    weights = Decoder.random(SHAPE, torch.bfloat16, "cuda", seed=5, quantize=mode)
    oracle = moved_to_cpu(weights, plain)
    prompt = random.Random(1).choices(range(1000), k=70)
    scales = calibrate(weights, [prompt]).cpu() if kv_dtype == "fp8" else None
    config = EngineConfig(device="cuda", kv_tokens=32_768, quantize=mode, kv_dtype=kv_dtype, debug_checks=True)
    with Engine(weights, config=config, kv_scales=scales) as engine:
        kids = engine.prefill(prompt).fork(rows)
        engine.decode(kids, max_tokens=12, temperature=1.0)
        for kid in kids[:4]:
            memory = E4M3 if kv_dtype == "fp8" else torch.float32
            fresh = logits_by_recomputation(oracle, kid.path_tokens, memory, scales).log_softmax(-1)
            first = kid.length - len(kid.logprobs)
            for at, logprob in enumerate(kid.logprobs, start=first):
                assert fresh[at - 1, kid.path_tokens[at]].item() == pytest.approx(logprob, abs=0.08)


def moved_to_cpu(decoder: Decoder, like: Decoder) -> Decoder:
    """The same numbers, widened to float32, on the CPU."""
    from dendrite.model.linear import Linear

    def wide(linear: Linear) -> Linear:
        if isinstance(linear, QuantizedLinear):
            return Linear(linear.quantized.dequantize(torch.float32).cpu())
        return Linear(linear.weight.float().cpu())

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float().cpu()

    source = decoder.weights
    layers = tuple(
        replace(
            layer,
            input_norm=cpu(layer.input_norm),
            mlp_norm=cpu(layer.mlp_norm),
            qkv=wide(layer.qkv),
            output=wide(layer.output),
            gate_up=wide(layer.gate_up),
            down=wide(layer.down),
        )
        for layer in source.layers
    )
    every = torch.arange(SHAPE.vocab_size, device="cuda")
    with torch.inference_mode():
        embedding = cpu(source.embed(every))
    moved = replace(
        source,
        embedding=embedding,
        layers=layers,
        norm=cpu(source.norm),
        lm_head=wide(source.lm_head),
        embedding_scales=None,
    )
    return Decoder(like.config, moved)

"""Which checkpoints are read, and which are refused by the name of the option."""

from __future__ import annotations

from typing import Any

import pytest

from dendrite.errors import UnsupportedModel
from dendrite.quant.scheme import parse_scheme

NUMBER = {"num_bits": 8, "type": "float", "symmetric": True}


def compressed(**changes: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {**NUMBER, "strategy": "channel", "dynamic": False},
        "input_activations": {**NUMBER, "strategy": "token", "dynamic": True},
    }
    outer = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]}
    inner = {name: changes.pop(name) for name in list(changes) if name in group}
    return {**outer, "config_groups": {"group_0": {**group, **inner}}, **changes}


def test_no_scheme() -> None:
    assert parse_scheme(None, "here") is None


def test_compressed_tensors() -> None:
    scheme = parse_scheme(compressed(), "here")
    assert scheme is not None
    assert scheme.activations == "dynamic"
    assert scheme.modes == ("fp8", "fp8_weight_only")
    assert scheme.keeps("lm_head")
    assert not scheme.keeps("model.layers.0.mlp.up_proj")


def test_weights_alone_and_static_activations() -> None:
    weights = parse_scheme(compressed(input_activations=None), "here")
    static = parse_scheme(compressed(input_activations={**NUMBER, "strategy": "tensor", "dynamic": False}), "here")
    assert weights is not None
    assert static is not None
    assert weights.modes == ("fp8_weight_only", "fp8")
    assert static.activations == "static"


def test_fp8_with_and_without_blocks() -> None:
    plain = parse_scheme({"quant_method": "fp8", "activation_scheme": "static"}, "here")
    blocks = parse_scheme(
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "modules_to_not_convert": ["up_proj"]},
        "here",
    )
    assert plain is not None
    assert blocks is not None
    assert (plain.activations, plain.block) == ("static", None)
    assert blocks.block == (128, 128)
    assert blocks.modes == ("fp8_weight_only",)
    assert blocks.keeps("model.layers.3.mlp.up_proj")


def test_mxfp8() -> None:
    scheme = parse_scheme({"quant_method": "mxfp8", "ignored_layers": ["model.layers.0"]}, "here")
    assert scheme is not None
    assert scheme.is_mx
    assert scheme.modes == ("mxfp8_weight_only", "mxfp8")
    assert scheme.keeps("model.layers.0.self_attn.q_proj")
    assert not scheme.keeps("model.layers.01.self_attn.q_proj")


@pytest.mark.parametrize(
    ("pattern", "module", "kept"),
    [
        ("re:.*down_proj", "model.layers.1.mlp.down_proj", True),
        ("re:.*down_proj", "model.layers.1.mlp.up_proj", False),
        ("mlp.up_proj", "model.layers.1.mlp.up_proj", True),
        ("lm_head", "lm_head", True),
    ],
)
def test_ignored_modules(pattern: str, module: str, kept: bool) -> None:
    scheme = parse_scheme(compressed(ignore=[pattern]), "here")
    assert scheme is not None
    assert scheme.keeps(module) == kept


@pytest.mark.parametrize(
    ("raw", "option"),
    [
        ("fp8", "must be an object"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "weight_block_size"),
        ({"quant_method": "fp8", "activation_scheme": "none"}, "activation_scheme"),
        ({"quant_method": "mxfp8", "weight_block_size": [1, 16]}, "weight_block_size"),
        (compressed(format="pack-quantized"), "format"),
        (compressed(config_groups={}), "config_groups"),
        (compressed(targets=["Linear", "Embedding"]), "targets"),
        (compressed(weights={**NUMBER, "num_bits": 4, "strategy": "channel"}), "weights"),
        (compressed(weights={**NUMBER, "strategy": "group"}), "weights"),
        (compressed(input_activations={**NUMBER, "type": "int", "strategy": "token"}), "input_activations"),
        (compressed(input_activations={**NUMBER, "strategy": "token", "dynamic": False}), "input_activations"),
        (compressed(kv_cache_scheme={**NUMBER, "num_bits": 4, "strategy": "tensor"}), "kv_cache_scheme"),
        (compressed(ignore=["re:*down_proj"]), "ignore"),
        (compressed(ignore="lm_head"), "ignore"),
        ({"quant_method": "fp8", "modules_to_not_convert": [1]}, "modules_to_not_convert"),
        ({"quant_method": "mxfp8", "ignored_layers": {"lm_head": True}}, "ignored_layers"),
    ],
)
def test_what_is_not_read_is_refused_by_name(raw: object, option: str) -> None:
    with pytest.raises(UnsupportedModel, match=option):
        parse_scheme(raw, "here")

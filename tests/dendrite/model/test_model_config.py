"""Reading `config.json`: both spellings, the families' switches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dendrite.errors import CorruptFile, ModelNotFound, UnsupportedModel
from dendrite.model.config import ModelConfig, RopeConfig

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def read(tmp_path: Path, architecture: str = "LlamaForCausalLM", **fields: Any) -> ModelConfig:
    config = {"architectures": [architecture]} | SIZES | fields
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return ModelConfig.from_folder(tmp_path)


def test_what_the_file_leaves_out_follows_from_the_rest(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.max_context) == (4, 16, 512)
    assert (config.query_size, config.kv_size) == (64, 64)
    assert config.rope.theta == 10_000.0
    assert config.dtype == "float32"


def test_old_and_new_spelling_agree(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 256
    old = read(
        tmp_path,
        rope_theta=5e5,
        rope_scaling=scaling | {"rope_type": "llama3"},
        torch_dtype="bfloat16",
    )
    new = read(
        tmp_path,
        rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 5e5},
        dtype="bfloat16",
    )
    assert old == new
    assert old.rope == RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 256)
    assert old.dtype == "bfloat16"


def test_the_oldest_spelling_of_the_rope_type_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, rope_scaling={"type": "linear", "factor": 2.0}).rope.kind == "linear"


@pytest.mark.parametrize(
    ("architecture", "fields", "switches"),
    [
        ("LlamaForCausalLM", {}, (False, False, False, False)),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}, (True, True, True, False)),
        ("MistralForCausalLM", {}, (False, False, False, False)),
        ("Qwen2ForCausalLM", {}, (True, False, False, False)),
        ("Qwen3ForCausalLM", {}, (False, False, False, True)),
        ("Qwen3ForCausalLM", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_each_family_has_its_switches(
    tmp_path: Path, architecture: str, fields: dict[str, Any], switches: tuple[bool, ...]
) -> None:
    config = read(tmp_path, architecture, **fields)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm) == switches


def test_qwen3_has_its_own_default_head_size(tmp_path: Path) -> None:
    assert read(tmp_path, "Qwen3ForCausalLM").head_dim == 128


@pytest.mark.parametrize(
    ("architecture", "fields", "limit"),
    [
        ("MistralForCausalLM", {"sliding_window": 128}, 128),
        ("MistralForCausalLM", {"sliding_window": None}, 512),
        ("MistralForCausalLM", {"max_position_embeddings": 8192}, 4096),
        ("LlamaForCausalLM", {"sliding_window": 128}, 512),
        ("Qwen2ForCausalLM", {"sliding_window": 128}, 512),
        ("Qwen2ForCausalLM", {"sliding_window": 128, "use_sliding_window": True}, 512),
        ("Qwen2ForCausalLM", {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 1}, 128),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 128,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            128,
        ),
        (
            "Qwen3ForCausalLM",
            {"sliding_window": 128, "use_sliding_window": True, "layer_types": ["full_attention"] * 2},
            512,
        ),
    ],
)
def test_a_sliding_window_caps_the_context(
    tmp_path: Path, architecture: str, fields: dict[str, Any], limit: int
) -> None:
    assert read(tmp_path, architecture, **fields).max_context == limit


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"head_dim": 15}, "head_dim"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], names: str) -> None:
    with pytest.raises(UnsupportedModel, match=names):
        read(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"vocab_size": ...}, "vocab_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"architectures": ...}, "architectures"),
        ({"architectures": []}, "architectures"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 5}, "hidden_size"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "big"}}, "factor"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                }
            },
            "high_freq_factor",
        ),
    ],
)
def test_a_bad_field_is_named_with_the_file(tmp_path: Path, fields: dict[str, Any], names: str) -> None:
    with pytest.raises(CorruptFile, match=names) as caught:
        read(tmp_path, **fields)
    assert caught.value.file == str(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["{", "[]", "\xff\xfe"])
def test_a_file_that_is_not_a_json_object_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptFile, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_a_missing_file_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)

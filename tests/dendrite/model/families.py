"""Tiny models of each family with random weights, as `transformers` saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama(**options: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SIZES | options))


def _mistral(**options: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_SIZES | options))


def _qwen2(**options: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_SIZES | options))


def _qwen3(**options: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_SIZES | options))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: _llama(),
    "llama-one-kv-head-tied": lambda: _llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama-multi-head-llama3-rope": lambda: _llama(num_key_value_heads=6, rope_parameters=dict(_LLAMA3_ROPE)),
    "llama-biases-head-dim": lambda: _llama(attention_bias=True, mlp_bias=True, head_dim=16),
    "llama-linear-rope": lambda: _llama(rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}),
    "mistral": lambda: _mistral(sliding_window=None),
    "mistral-head-dim-tied": lambda: _mistral(sliding_window=192, head_dim=12, tie_word_embeddings=True),
    "qwen2": lambda: _qwen2(),
    "qwen2-tied": lambda: _qwen2(tie_word_embeddings=True, num_key_value_heads=3),
    "qwen3": lambda: _qwen3(head_dim=16),
    "qwen3-bias-tied": lambda: _qwen3(head_dim=8, attention_bias=True, tie_word_embeddings=True),
}


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model with every parameter random: biases, norms and all, so that none can be forgotten unnoticed."""
    torch.manual_seed(seed)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.normal_(1.0, 0.2)
            elif "embed" in key:
                parameter.normal_(0.0, 1.0)
            else:
                parameter.normal_(0.0, 0.15)
    return model


def save_model(name: str, folder: Path, **options: Any) -> Path:
    """Save the model in a folder, with options of `save_pretrained`."""
    make_model(name).save_pretrained(folder, **options)
    return folder

"""Shapes of the models that are benchmarked with random weights: only sizes matter to speed."""

from __future__ import annotations

import math

from dendrite.model.config import ModelConfig, RopeConfig
from dendrite.model.weights import tensor_shapes

_LONGEST = 32_768

SHAPES = {
    "tiny": ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=257,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=10_000.0),
        max_context=_LONGEST,
    ),
    "tinyllama": ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_layers=22,
        num_heads=32,
        num_kv_heads=4,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=10_000.0),
        max_context=_LONGEST,
        dtype="bfloat16",
    ),
    "llama3-8b": ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=500_000.0),
        max_context=_LONGEST,
        dtype="bfloat16",
    ),
}


def step_bytes(shape: ModelConfig, element_bytes: int) -> int:
    """Bytes of the weights that a decode step reads: all but the embedding, of which it takes only a few rows."""
    sizes = {name: math.prod(size) for name, size in tensor_shapes(shape).items()}
    embedding = 0 if shape.tie_embeddings else sizes["model.embed_tokens.weight"]
    return (sum(sizes.values()) - embedding) * element_bytes


def token_bytes(shape: ModelConfig, element_bytes: int) -> int:
    """Bytes of one token's keys and values over all layers."""
    return 2 * shape.num_layers * shape.kv_size * element_bytes

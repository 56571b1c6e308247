"""The shape of a decoder for tests that need weights, but not what they know; `dataclasses.replace` varies it."""

from __future__ import annotations

from dendrite.model.config import ModelConfig, RopeConfig

TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=RopeConfig(theta=10_000.0),
    max_context=512,
)

"""The decoder's weights: what a checkpoint must hold, and the fused matrices made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dendrite.errors import UnsupportedModel
from dendrite.model.config import ModelConfig
from dendrite.model.linear import Linear
from dendrite.model.loader import Checkpoint
from dendrite.parallel.sharding import Shard

_INIT_STD = 0.02
Fill = Callable[[str, Tensor], None]
"""Writes the checkpoint's tensor of that name into the given memory."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer, with d the hidden size and m the MLP's inner size.

    qkv gives [(Hq + 2 Hkv) D]: queries, keys, values. gate_up gives [2 m]: gate, up. The norms are [d]; qk_norm
    is [Hq + Hkv, D]: the norm weight of the queries repeated for each query head, then that of the keys.
    """

    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights: embedding is [V, d] (which lm_head uses too where they are tied), norm is [d]."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    lm_head: Linear


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this model must hold."""
    d, m, q, kv = config.hidden_size, config.intermediate_size, config.query_size, config.kv_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (d,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (d,)
        linears = {
            "self_attn.q_proj": (q, d, config.qkv_bias),
            "self_attn.k_proj": (kv, d, config.qkv_bias),
            "self_attn.v_proj": (kv, d, config.qkv_bias),
            "self_attn.o_proj": (d, q, config.output_bias),
            "mlp.gate_proj": (m, d, config.mlp_bias),
            "mlp.up_proj": (m, d, config.mlp_bias),
            "mlp.down_proj": (d, m, config.mlp_bias),
        }
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (config.head_dim,)
    shapes["model.norm.weight"] = (d,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device, shard: Shard | None = None
) -> DecoderWeights:
    """Read the weights of a Hugging Face folder, or with `shard` that part of them, converted to `dtype`.

    Names and shapes are checked against the config, which is that of the whole model, before any memory is taken.

    Raises:
        InvalidArgument: the model cannot be divided so.
        MissingTensor, TensorShapeMismatch, CorruptFile: the files do not hold what the config calls for.
        UnsupportedModel: a layer has a tensor that this architecture has no use for.
    """
    with Checkpoint.from_folder(folder) as checkpoint:
        shapes = tensor_shapes(config)
        checkpoint.check(shapes)
        _refuse_unknown(checkpoint.names, shapes, config, folder)
        shard = shard or Shard()
        return _assemble(shard.of(config), dtype, device, partial(shard.read, checkpoint))


def random_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int) -> DecoderWeights:
    """Weights drawn from N(0, 0.02²), norms at 1: for benchmarks and tests, where only the shape matters."""
    generator = torch.Generator(device).manual_seed(seed)

    def fill(name: str, target: Tensor) -> None:
        if name.endswith("norm.weight"):
            target.fill_(1.0)
        else:
            target.normal_(0.0, _INIT_STD, generator=generator)

    return _assemble(config, dtype, device, fill)


def _refuse_unknown(
    names: frozenset[str], shapes: dict[str, tuple[int, ...]], config: ModelConfig, folder: Path
) -> None:
    """Refuse a layer's tensor that would go unused (a bias, say): the results would be wrong."""
    for name in sorted(names - shapes.keys()):
        # Old checkpoints store the rotary frequencies, which follow from the config.
        if name.startswith("model.layers.") and not name.endswith(".rotary_emb.inv_freq"):
            raise UnsupportedModel(f"{folder}: {config.architecture} has no use for tensor {name!r}")


@torch.inference_mode()
def _assemble(config: ModelConfig, dtype: torch.dtype, device: torch.device, fill: Fill) -> DecoderWeights:
    d, m, q, kv = config.hidden_size, config.intermediate_size, config.query_size, config.kv_size

    def stacked(*parts: tuple[str, int], columns: int | None = None) -> Tensor:
        """The named parts, with their row counts, one under the other."""
        total = sum(rows for _, rows in parts)
        target = torch.empty((total,) if columns is None else (total, columns), dtype=dtype, device=device)
        for (name, _), piece in zip(parts, target.split([rows for _, rows in parts]), strict=True):
            fill(name, piece)
        return target

    def linear(prefix: str, *parts: tuple[str, int], columns: int, bias: bool) -> Linear:
        weight = stacked(*((f"{prefix}.{name}.weight", rows) for name, rows in parts), columns=columns)
        return Linear(weight, stacked(*((f"{prefix}.{name}.bias", rows) for name, rows in parts)) if bias else None)

    def head_norms(prefix: str) -> Tensor:
        parts = stacked(*((f"{prefix}.{name}.weight", config.head_dim) for name in ("q_norm", "k_norm")))
        repeats = torch.tensor([config.num_heads, config.num_kv_heads], device=device)
        return parts.view(2, config.head_dim).repeat_interleave(repeats, dim=0)

    def layer(prefix: str) -> LayerWeights:
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = ("q_proj", q), ("k_proj", kv), ("v_proj", kv)
        return LayerWeights(
            input_norm=stacked((f"{prefix}.input_layernorm.weight", d)),
            qkv=linear(attention, *qkv, columns=d, bias=config.qkv_bias),
            qk_norm=head_norms(attention) if config.qk_norm else None,
            output=linear(attention, ("o_proj", d), columns=q, bias=config.output_bias),
            mlp_norm=stacked((f"{prefix}.post_attention_layernorm.weight", d)),
            gate_up=linear(mlp, ("gate_proj", m), ("up_proj", m), columns=d, bias=config.mlp_bias),
            down=linear(mlp, ("down_proj", d), columns=m, bias=config.mlp_bias),
        )

    embedding = stacked(("model.embed_tokens.weight", config.vocab_size), columns=d)
    if config.tie_embeddings:
        lm_head = Linear(embedding, pack=False)
    else:
        lm_head = Linear(stacked(("lm_head.weight", config.vocab_size), columns=d))
    layers = tuple(layer(f"model.layers.{index}") for index in range(config.num_layers))
    return DecoderWeights(embedding, layers, stacked(("model.norm.weight", d)), lm_head)

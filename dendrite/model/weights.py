"""The decoder's weights: what a checkpoint must hold, and the fused matrices made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.errors import UnsupportedModel
from dendrite.model.config import ModelConfig
from dendrite.model.linear import Linear
from dendrite.model.loader import Checkpoint
from dendrite.parallel.sharding import Shard
from dendrite.quant.checkpoint import StoredWeights
from dendrite.quant.linear import QuantizedLinear
from dendrite.quant.products import Products
from dendrite.quant.scheme import QuantizeMode
from dendrite.quant.weights import QuantizedWeight, Scales

_INIT_STD = 0.02
KV_SCALE_NAMES = (".self_attn.k_scale", ".self_attn.v_scale")
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
    """All weights: embedding is [V, d] (which lm_head uses too where they are tied), norm is [d].

    Where the embedding is quantised, `embedding` are its elements, and `embedding_scales` go with them. `quantize` is
    the mode in which the layers' products are computed, asked for or the checkpoint's own.
    """

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    lm_head: Linear
    embedding_scales: Scales | None = None
    quantize: QuantizeMode | None = None

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows of the embedding: tokens [T] to [T, d], in the type of the norms."""
        if self.embedding_scales is None:
            return F.embedding(tokens, self.embedding)
        return QuantizedWeight(self.embedding, self.embedding_scales).rows(tokens, self.norm.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for all weights, scales included."""
        plain = [self.norm, self.embedding]
        linears = [] if self.lm_head.weight_memory == self.embedding.data_ptr() else [self.lm_head]
        if self.embedding_scales is not None:
            plain.append(self.embedding_scales.values)
        for layer in self.layers:
            plain += [layer.input_norm, layer.mlp_norm, *([] if layer.qk_norm is None else [layer.qk_norm])]
            linears += [layer.qkv, layer.output, layer.gate_up, layer.down]
        return sum(tensor.untyped_storage().nbytes() for tensor in plain) + sum(linear.nbytes for linear in linears)


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
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantize: QuantizeMode | None = None,
    shard: Shard | None = None,
) -> DecoderWeights:
    """Read the weights of a Hugging Face folder, or with `shard` that part of them.

    They are converted to `dtype`; matrices are quantised, or stay as they were stored so. Names and shapes are checked
    against the config, which is that of the whole model, before any memory is taken. At most one matrix at a time is
    there unquantised.

    Raises:
        InvalidArgument: the checkpoint is quantised, and can't be used in the mode `quantize`, or the model cannot be
            divided so.
        MissingTensor, TensorShapeMismatch, CorruptFile: the files do not hold what the config calls for.
        UnsupportedModel: a layer has a tensor that this architecture has no use for.
    """
    shard = shard or Shard()
    with Checkpoint.from_folder(folder) as checkpoint:
        shapes = tensor_shapes(config)
        products = Products(quantize, config.stored)
        stored, known = None, frozenset(shapes)
        if config.stored is not None:
            stored = StoredWeights(checkpoint, config.stored, shard)
            shapes, quantized = stored.check(shapes)
            known |= quantized
        checkpoint.check(shapes)
        _refuse_unknown(checkpoint.names, known, config, folder)
        return _assemble(shard.of(config), dtype, device, partial(shard.read, checkpoint), products, stored)


def random_weights(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int, quantize: QuantizeMode | None = None
) -> DecoderWeights:
    """Weights drawn from N(0, 0.02²), norms at 1: for benchmarks and tests, where only the shape matters."""
    generator = torch.Generator(device).manual_seed(seed)

    def fill(name: str, target: Tensor) -> None:
        if name.endswith("norm.weight"):
            target.fill_(1.0)
        else:
            target.normal_(0.0, _INIT_STD, generator=generator)

    return _assemble(config, dtype, device, fill, Products(quantize))


def _refuse_unknown(names: frozenset[str], known: frozenset[str], config: ModelConfig, folder: Path) -> None:
    """Refuse a layer's tensor that would go unused (a bias, say): the results would be wrong."""
    for name in sorted(names - known):
        # Old checkpoints store the rotary frequencies, which follow from the config. Keys' and values' scales are used
        # where these are kept in FP8, see `dendrite.quant.kv_scales`.
        if name.startswith("model.layers.") and not name.endswith((".rotary_emb.inv_freq", *KV_SCALE_NAMES)):
            raise UnsupportedModel(f"{folder}: {config.architecture} has no use for tensor {name!r}")


@torch.inference_mode()
def _assemble(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    fill: Fill,
    products: Products,
    stored: StoredWeights | None = None,
) -> DecoderWeights:
    d, m, q, kv = config.hidden_size, config.intermediate_size, config.query_size, config.kv_size

    def stacked(*parts: tuple[str, int], columns: int | None = None) -> Tensor:
        """The named parts, with their row counts, one under the other."""
        total = sum(rows for _, rows in parts)
        target = torch.empty((total,) if columns is None else (total, columns), dtype=dtype, device=device)
        for (name, _), piece in zip(parts, target.split([rows for _, rows in parts]), strict=True):
            fill(name, piece)
        return target

    def linear(prefix: str, *parts: tuple[str, int], columns: int, bias: bool) -> Linear:
        shift = stacked(*((f"{prefix}.{name}.bias", rows) for name, rows in parts)) if bias else None
        if stored is not None:
            modules = [f"{prefix}.{name}" for name, _ in parts]
            found = stored.read(modules, [rows for _, rows in parts], columns, device)
            if found is not None:
                return products.stored(found, shift)
        weight = stacked(*((f"{prefix}.{name}.weight", rows) for name, rows in parts), columns=columns)
        return products.plain(weight, shift)

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

    def head() -> Linear:
        if config.tie_embeddings:
            return Linear(embedding, pack=False) if table is None else QuantizedLinear(table)
        found = stored.read(["lm_head"], [config.vocab_size], d, device) if stored is not None else None
        if found is not None:
            return QuantizedLinear(found.weight)
        return products.head(stacked(("lm_head.weight", config.vocab_size), columns=d))

    embedding = stacked(("model.embed_tokens.weight", config.vocab_size), columns=d)
    table = products.table(embedding)
    if table is not None:
        embedding = table.elements
    layers = tuple(layer(f"model.layers.{index}") for index in range(config.num_layers))
    norm = stacked(("model.norm.weight", d))
    scales = None if table is None else table.scales
    return DecoderWeights(embedding, layers, norm, head(), scales, products.effective)

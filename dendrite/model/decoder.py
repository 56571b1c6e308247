"""The decoder of the Llama family: one forward pass for all supported architectures.

Pre-norm blocks with rotary attention over paged KV and a SwiGLU MLP. What tells the families apart (biases,
query and key norms, tied embeddings, rotary scaling) is which weights exist, see `ModelConfig`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.attention.base import Attention, ForwardBatch
from dendrite.errors import InvalidArgument
from dendrite.model.config import ModelConfig
from dendrite.model.rope import Rotation, inverse_frequencies
from dendrite.model.weights import DecoderWeights, LayerWeights, load_weights, random_weights
from dendrite.parallel.sharding import Shard
from dendrite.quant.capability import check_weights
from dendrite.quant.scheme import QuantizeMode

if TYPE_CHECKING:
    from dendrite.parallel.group import Group


class Decoder:
    """Tokens to final hidden states to logits; holds weights and no state between calls.

    In a tensor-parallel group, `config` and `weights` are those of this rank's part, and all ranks must make the same
    `forward` calls; hidden states and logits are whole on each.
    """

    def __init__(self, config: ModelConfig, weights: DecoderWeights, group: Group | None = None) -> None:
        self.config = config
        self.weights = weights
        self.group = group
        self.shard = group.shard if group is not None else Shard()
        self.dtype = weights.norm.dtype
        self.device = weights.norm.device
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(self.device)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        quantize: QuantizeMode | None = None,
        group: Group | None = None,
    ) -> Decoder:
        """Load a Hugging Face model folder.

        Args:
            folder: holds `config.json` and safetensors files.
            dtype: type of weights and activations; None is the checkpoint's own.
            device: where the weights go.
            quantize: how products are computed with 8 bits; None is as the checkpoint's matrices are stored.
            group: the ranks among which the model is divided; only this one's part is read.

        Raises:
            InvalidArgument: `quantize` does not go with this device, type, model or checkpoint, or the model cannot be
            divided so.
            ModelError: some kind of it, naming the file or tensor that is wrong, before weights are
            allocated.
        """
        config = ModelConfig.from_folder(folder)
        dtype = dtype or getattr(torch, config.dtype)
        device = torch.device(device)
        shard = group.shard if group is not None else Shard()
        part = shard.of(config)
        check_weights(quantize, part, dtype, device)
        return cls(part, load_weights(Path(folder), config, dtype, device, quantize, shard), group)

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        quantize: QuantizeMode | None = None,
    ) -> Decoder:
        """A decoder with random weights, the same for the same seed on the same kind of device.

        Raises:
            InvalidArgument: `quantize` does not go with this device, type or model.
        """
        device = torch.device(device)
        check_weights(quantize, config, dtype, device)
        return cls(config, random_weights(config, dtype, device, seed, quantize))

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, attention: Attention) -> Tensor:
        """Run one step's tokens through all layers, storing their keys and values.

        Args:
            batch: T tokens with their places.
            attention: over the KV storage that the batch's slots and pages refer to.

        Returns:
            [T, d] hidden states after the final norm, in the decoder's type.
        """
        if batch.tokens.shape[0] == 0:
            raise InvalidArgument("batch.tokens", batch.tokens.shape, "must hold at least one token")
        attention.begin(batch)
        rotation = Rotation(batch.positions, self._frequencies, self.dtype)
        hidden = self.weights.embed(batch.tokens)
        for index, layer in enumerate(self.weights.layers):
            self._attend(index, layer, hidden, rotation, attention)
            self._transform(layer, hidden)
        return self._norm(hidden, self.weights.norm)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary: [B, d] final hidden states to [B, V] float32."""
        return self.weights.lm_head(hidden).float()

    def _attend(
        self, index: int, layer: LayerWeights, hidden: Tensor, rotation: Rotation, attention: Attention
    ) -> None:
        """Add the attention block's output to `hidden` [T, d] in place."""
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        projected = layer.qkv(self._norm(hidden, layer.input_norm))
        projected = projected.view(-1, heads + 2 * kv_heads, config.head_dim)
        query_key, value = projected.split((heads + kv_heads, kv_heads), dim=1)
        if layer.qk_norm is not None:
            query_key = F.rms_norm(query_key, (config.head_dim,), None, config.rms_norm_eps) * layer.qk_norm
        query, key = rotation.apply(query_key).split((heads, kv_heads), dim=1)
        mixed = attention.forward(index, query, key, value)
        hidden.add_(self._summed(layer.output(mixed.reshape(-1, config.query_size))))

    def _transform(self, layer: LayerWeights, hidden: Tensor) -> None:
        """Add the MLP block's output to `hidden` [T, d] in place."""
        gate, up = layer.gate_up(self._norm(hidden, layer.mlp_norm)).chunk(2, dim=1)
        hidden.add_(self._summed(layer.down(F.silu(gate).mul_(up))))

    def _summed(self, product: Tensor) -> Tensor:
        """A product over inputs that are divided among the ranks, from this rank's part of it, in place."""
        if self.group is not None:
            self.group.all_reduce(product)
        return product

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, (self.config.hidden_size,), weight, self.config.rms_norm_eps)

"""The decode step of a decoder on the GPU in few kernels, over memory whose addresses never change.

A decode step at small batch is bound by streaming the weights once, and by what lies between two kernels. So a layer is
cut only where its data must cross the whole chip. For one row, whose products run on the CUDA cores:

    norm → query, key, value → rotation → write KV     one kernel
    attention over the tree                            two (partial results, merge)
    output projection → residual                       one
    norm → gate, up → SwiGLU                           one
    down projection → residual                         one

For more rows the products run on the tensor cores, which want their inputs normed, and divide a product among enough
programs to keep the memory busy; who needs the product sums the parts:

    query, key, value (parts)                          one kernel
    sum → rotation → write KV                          one
    attention over the tree                            two
    output projection (parts)                          one
    sum → residual → norm                              one
    gate, up → SwiGLU                                  one
    down projection (parts)                            one
    sum → residual → norm (of the next layer)          one

From `_WIDE_ROWS` rows on the products are bound by arithmetic, and cuBLAS does them. Weights of 8 bits are widened on
their way to the product by the kernels for fewer rows, whose activations then need no rounding.

While attention leaves the memory idle, it asks for the weights of the product behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dendrite.attention.tree import TreeAttention
from dendrite.kernels import elementwise, gemm, linear, reduce
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder
from dendrite.model.rope import inverse_frequencies
from dendrite.model.weights import LayerWeights

_VECTOR_ROWS = 1
"""Most rows whose products are faster on the CUDA cores."""
_WIDE_ROWS = 129
"""Fewest rows whose products cuBLAS does faster (`benchmarks.gemm` on an H100: 55 against 59 us a layer at 128 rows of
TinyLlama, 68 against 63 at 256)."""
_AHEAD_BYTES = 12 << 20
"""Most of the next weights to bring into L2 during attention: what is left of it is for KV."""


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Where a step finds its rows: tensors on the device, [R] int32.

    tokens: the token each row runs. positions: its place on the path. alive: 0 for a row that must leave no trace.
    """

    tokens: Tensor
    positions: Tensor
    alive: Tensor


class FusedDecoder:
    """`Decoder.forward` for rows of one token each; allocates nothing after construction."""

    def __init__(
        self, decoder: Decoder, storage: KvStorage, attention: TreeAttention, capacity: int, *, pdl: bool
    ) -> None:
        """Run up to `capacity` rows.

        Args:
            decoder: whose weights are used, unpacked.
            storage: where keys and values go.
            attention: over the same storage; its page tables and lengths place the rows.
            capacity: most rows of a step, R.
            pdl: whether kernels overlap with their successors (programmatic dependent launch, Hopper and newer).
        """
        config, layers = decoder.config, decoder.weights.layers
        self._decoder, self._storage, self._attention, self._pdl = decoder, storage, attention, pdl
        self._kv_scales = (None,) * config.num_layers if storage.scales is None else tuple(storage.scales)
        self._eps = config.rms_norm_eps
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(decoder.device)

        def buffer(*shape: int, dtype: torch.dtype = decoder.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=decoder.device)

        self._hidden = buffer(capacity, config.hidden_size)
        self._normed = buffer(capacity, config.hidden_size)
        self._logits = buffer(capacity, config.vocab_size, dtype=torch.float32)
        self._cos_sin = buffer(capacity, config.head_dim, dtype=torch.float32)
        self._slots = buffer(capacity, dtype=torch.int32)
        self._query = buffer(capacity, config.num_heads, config.head_dim)
        self._mixed = buffer(capacity, config.num_heads, config.head_dim)
        self._inner = buffer(capacity, config.intermediate_size)
        narrow = min(capacity, _WIDE_ROWS - 1)
        self._parts = buffer(
            max(
                gemm.partials_size("qkv", narrow, layers[0].qkv.weight),
                gemm.partials_size("output", narrow, layers[0].output.weight),
                gemm.partials_size("down", narrow, layers[0].down.weight),
            ),
            dtype=torch.float32,
        )
        wide = capacity if capacity >= _WIDE_ROWS else 0
        self._qkv = buffer(wide, config.query_size + 2 * config.kv_size)
        self._gate_up = buffer(wide, 2 * config.intermediate_size)
        self._added = buffer(wide, config.hidden_size)

    def run_layers(self, rows: RowInputs, size: int) -> Tensor:
        """Run the first `size` rows through all layers, writing their KV: [size, d], before the final norm."""
        hidden = self._hidden[:size]
        elementwise.prepare(
            rows.tokens[:size],
            rows.positions[:size],
            rows.alive[:size],
            self._attention.pages,
            self._attention.row_start[:size],
            self._storage.page_size,
            self._decoder.weights.embedding,
            self._frequencies,
            hidden,
            self._cos_sin[:size],
            self._slots[:size],
            self._attention.lengths[:size],
            scales=self._decoder.weights.embedding_scales,
            pdl=self._pdl,
        )
        layers = self._decoder.weights.layers
        if size <= _VECTOR_ROWS:
            for index, layer in enumerate(layers):
                self._run_vector_layer(index, layer, hidden)
            return hidden
        elementwise.rms_norm(hidden, layers[0].input_norm, self._eps, self._normed[:size], pdl=self._pdl)
        following = [*(layer.input_norm for layer in layers[1:]), self._decoder.weights.norm]
        run_layer = self._run_layer if size < _WIDE_ROWS else self._run_wide_layer
        for index, (layer, next_norm) in enumerate(zip(layers, following, strict=True)):
            run_layer(index, layer, next_norm, hidden)
        return hidden

    def run_head(self, states: Tensor) -> Tensor:
        """Logits [B, V] float32 of final hidden states [B, d], in memory that the next call overwrites."""
        size, head = states.shape[0], self._decoder.weights.lm_head
        logits = self._logits[:size]
        product = linear.linear if size <= _VECTOR_ROWS else gemm.linear
        product(states, head.weight, head.bias, logits, scales=head.scales, pdl=self._pdl)
        return logits

    def _run_vector_layer(self, index: int, layer: LayerWeights, hidden: Tensor) -> None:
        eps, pdl, size = self._eps, self._pdl, hidden.shape[0]
        query, inner = self._query[:size], self._inner[:size]
        linear.qkv_rope_append(
            hidden,
            layer.input_norm,
            eps,
            layer.qkv.weight,
            layer.qkv.bias,
            layer.qk_norm,
            self._cos_sin[:size],
            self._slots[:size],
            query,
            self._storage.pages[index],
            scales=layer.qkv.scales,
            kv_scales=self._kv_scales[index],
            pdl=pdl,
        )
        mixed = self._attend(index, layer, query)
        output, gate_up, down = layer.output, layer.gate_up, layer.down
        linear.linear_residual(mixed, output.weight, output.bias, hidden, scales=output.scales, pdl=pdl)
        linear.gate_up_swiglu(
            hidden, layer.mlp_norm, eps, gate_up.weight, gate_up.bias, inner, scales=gate_up.scales, pdl=pdl
        )
        linear.linear_residual(inner, down.weight, down.bias, hidden, scales=down.scales, pdl=pdl)

    def _run_layer(self, index: int, layer: LayerWeights, next_norm: Tensor, hidden: Tensor) -> None:
        eps, pdl, size = self._eps, self._pdl, hidden.shape[0]
        query, inner, normed = self._query[:size], self._inner[:size], self._normed[:size]
        parts = gemm.linear_partials(normed, layer.qkv.weight, self._parts, "qkv", scales=layer.qkv.scales, pdl=pdl)
        reduce.rope_append_partials(
            parts,
            layer.qkv.bias,
            layer.qk_norm,
            eps,
            self._cos_sin[:size],
            self._slots[:size],
            query,
            self._storage.pages[index],
            kv_scales=self._kv_scales[index],
            pdl=pdl,
        )
        mixed = self._attend(index, layer, query)
        output, gate_up, down = layer.output, layer.gate_up, layer.down
        parts = gemm.linear_partials(mixed, output.weight, self._parts, "output", scales=output.scales, pdl=pdl)
        reduce.residual_norm(parts, output.bias, hidden, layer.mlp_norm, eps, normed, pdl=pdl)
        gemm.linear_swiglu(normed, gate_up.weight, gate_up.bias, inner, scales=gate_up.scales, pdl=pdl)
        parts = gemm.linear_partials(inner, down.weight, self._parts, "down", scales=down.scales, pdl=pdl)
        reduce.residual_norm(parts, down.bias, hidden, next_norm, eps, normed, pdl=pdl)

    def _run_wide_layer(self, index: int, layer: LayerWeights, next_norm: Tensor, hidden: Tensor) -> None:
        eps, pdl, size = self._eps, self._pdl, hidden.shape[0]
        query, inner, normed, added = self._query[:size], self._inner[:size], self._normed[:size], self._added[:size]
        qkv, gate_up = self._qkv[:size], self._gate_up[:size]
        layer.qkv.into(normed, qkv)
        reduce.rope_append_partials(
            qkv[None],
            None,
            layer.qk_norm,
            eps,
            self._cos_sin[:size],
            self._slots[:size],
            query,
            self._storage.pages[index],
            kv_scales=self._kv_scales[index],
            pdl=pdl,
        )
        layer.output.into(self._attend(index, layer, query), added)
        reduce.residual_norm(added[None], None, hidden, layer.mlp_norm, eps, normed, pdl=pdl)
        layer.gate_up.into(normed, gate_up)
        reduce.swiglu_partials(gate_up[None], None, inner, pdl=pdl)
        layer.down.into(inner, added)
        reduce.residual_norm(added[None], None, hidden, next_norm, eps, normed, pdl=pdl)

    def _attend(self, index: int, layer: LayerWeights, query: Tensor) -> Tensor:
        """Attention's output [size, Hq D], with the beginning of the output projection's weight on its way to L2."""
        size, weight = query.shape[0], layer.output.weight
        mixed = self._mixed[:size]
        ahead = weight[: max(1, _AHEAD_BYTES // (weight.shape[1] * weight.element_size()))]
        self._attention.decode(index, query, mixed, size, upcoming=ahead if size <= _VECTOR_ROWS else None)
        return mixed.view(size, -1)

"""The same workloads by transformers, on the same weights, where it has a way to do them.

It has no fork: branches of a prefix are rows of a batch, for which the prefix's cache is copied as often. So W1, W2 and
W4 are there, and W3 and W5 are not: without a shared cache each expansion would run its whole path again.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.machine import synchronize
from dendrite.errors import InvalidArgument
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.profiling.workloads import Figures, Prompts, Sizes

_W1_TOKENS = 64
"""Of one sequence, tokens that are timed: each costs the same, tens of milliseconds."""


class Transformers:
    """`LlamaForCausalLM` over a decoder's weights, which it shares."""

    def __init__(self, decoder: Decoder) -> None:
        """Take the weights of `decoder`.

        Raises:
            InvalidArgument: the decoder is of another architecture, or has rearranged its weights (float32 on the CPU).
        """
        self._device = decoder.device
        self._model = _shared_model(decoder)
        names = inspect.signature(LlamaForCausalLM.forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"  # by version

    def w1(self, prompts: Prompts, sizes: Sizes) -> Figures:
        """One greedy sequence, for at most 64 tokens."""
        tokens = min(sizes.w1_tokens, _W1_TOKENS)
        logits, cache = self._prefilled(prompts(sizes.w1_prompt))
        seconds = self._timed(lambda: self._decode(logits, cache, tokens, greedy=True))
        return Figures({"W1.ms_per_token": 1e3 * seconds / tokens}, {"W1.tokens": tokens})

    def w2(self, branches: int, prompts: Prompts, sizes: Sizes) -> Figures:
        """Branches of a prefix whose cache is repeated once for each of them, inside the timed part."""
        logits, cache = self._prefilled(prompts(sizes.w2_prompt))

        def run() -> None:
            cache.batch_repeat_interleave(branches)
            self._decode(logits.expand(branches, -1), cache, sizes.w2_tokens, greedy=False)

        return Figures({f"W2.n{branches}.tok_s": branches * sizes.w2_tokens / self._timed(run)})

    def w4(self, context: int, prompts: Prompts, sizes: Sizes) -> Figures:
        """Branch a context: copy its cache, draw a token, and run it."""
        logits, cache = self._prefilled(prompts(context))
        times = []
        for _ in range(sizes.w4_branches):
            copies: list[Any] = []

            def run(into: list[Any] = copies) -> None:
                into.append(self._copy(cache))
                self._decode(logits, into[0], 1, greedy=False)

            times.append(1e3 * self._timed(run))
        return Figures({f"W4.c{context}.ms": statistics.median(times)})

    def _prefilled(self, prompt: list[int]) -> tuple[Tensor, Any]:
        """Logits [1, V] after the prompt, and its cache."""
        cache = DynamicCache(config=self._model.config)
        logits = self._run(torch.tensor([prompt], device=self._device), cache)
        synchronize(self._device)
        return logits, cache

    def _decode(self, logits: Tensor, cache: Any, tokens: int, *, greedy: bool) -> None:
        """Generate from logits [B, V]; every token is run, and its id read by the host, as a search needs it."""
        for _ in range(tokens):
            drawn = logits.argmax(-1) if greedy else torch.multinomial(logits.float().softmax(-1), 1).squeeze(1)
            logits = self._run(drawn.unsqueeze(1), cache)
            drawn.tolist()

    def _run(self, tokens: Tensor, cache: Any) -> Tensor:
        made = self._model(tokens, use_cache=True, logits_to_keep=1, **{self._cache_argument: cache})
        logits: Tensor = made.logits[:, -1]
        return logits

    def _copy(self, cache: Any) -> Any:
        copied = DynamicCache(config=self._model.config)
        for index, layer in enumerate(cache.layers):
            copied.update(layer.keys.clone(), layer.values.clone(), index)
        return copied

    def _timed(self, run: Callable[[], None]) -> float:
        synchronize(self._device)
        start = time.perf_counter()
        run()
        synchronize(self._device)
        return time.perf_counter() - start


@torch.inference_mode()
def _shared_model(decoder: Decoder) -> LlamaForCausalLM:
    """A model without memory of its own: its parameters are views of the decoder's."""
    shape = decoder.config
    if shape.architecture != "LlamaForCausalLM" or shape.qkv_bias or shape.mlp_bias or shape.rope.kind != "default":
        raise InvalidArgument("decoder", shape.architecture, "a plain Llama")
    with torch.device("meta"):
        model = LlamaForCausalLM(_config(shape)).requires_grad_(False)
    model.load_state_dict(_state(decoder), strict=True, assign=True)
    # The rotary frequencies are no part of the state.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(decoder.device)
    return model.eval()


def _config(shape: ModelConfig) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope.theta},
        max_position_embeddings=shape.max_context,
        tie_word_embeddings=shape.tie_embeddings,
        attn_implementation="sdpa",
    )


def _state(decoder: Decoder) -> dict[str, Tensor]:
    shape, weights = decoder.config, decoder.weights
    state = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.norm,
        "lm_head.weight": weights.lm_head.weight,
    }
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}"
        query, key, value = layer.qkv.weight.split((shape.query_size, shape.kv_size, shape.kv_size))
        gate, up = layer.gate_up.weight.chunk(2)
        state |= {
            f"{prefix}.input_layernorm.weight": layer.input_norm,
            f"{prefix}.post_attention_layernorm.weight": layer.mlp_norm,
            f"{prefix}.self_attn.q_proj.weight": query,
            f"{prefix}.self_attn.k_proj.weight": key,
            f"{prefix}.self_attn.v_proj.weight": value,
            f"{prefix}.self_attn.o_proj.weight": layer.output.weight,
            f"{prefix}.mlp.gate_proj.weight": gate,
            f"{prefix}.mlp.up_proj.weight": up,
            f"{prefix}.mlp.down_proj.weight": layer.down.weight,
        }
    return state

"""A model folder with two small random layers, a byte tokenizer and a value head, written in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_VOCABULARY, _WIDTH, _INNER, _LAYERS, _HEADS, _KV_HEADS = 264, 32, 64, 2, 4, 2

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _VOCABULARY,
    "hidden_size": _WIDTH,
    "intermediate_size": _INNER,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": 256,
}


def write_tiny_model(folder: Path) -> Path:
    """Write the folder's files and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    save_file(_weights(), folder / "model.safetensors")
    save_file(_value_head(), folder / "value_head.safetensors")
    _tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _weights() -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(5)
    kv_width = _KV_HEADS * (_WIDTH // _HEADS)
    shapes = {"model.embed_tokens.weight": (_VOCABULARY, _WIDTH), "model.norm.weight": (_WIDTH,)}
    for layer in range(_LAYERS):
        block = {
            "input_layernorm": (_WIDTH,),
            "post_attention_layernorm": (_WIDTH,),
            "self_attn.q_proj": (_WIDTH, _WIDTH),
            "self_attn.k_proj": (kv_width, _WIDTH),
            "self_attn.v_proj": (kv_width, _WIDTH),
            "self_attn.o_proj": (_WIDTH, _WIDTH),
            "mlp.gate_proj": (_INNER, _WIDTH),
            "mlp.up_proj": (_INNER, _WIDTH),
            "mlp.down_proj": (_WIDTH, _INNER),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=noise) * 0.2
        for name, shape in shapes.items()
    }


def _value_head() -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(6)
    return {
        "dense.weight": torch.randn((16, _WIDTH), generator=noise),
        "dense.bias": torch.zeros(16),
        "out.weight": torch.randn((1, 16), generator=noise),
        "out.bias": torch.zeros(1),
    }


def _tokenizer() -> Tokenizer:
    """One token a byte, as in the packaged model."""
    letters = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in letters]
    character = {b: chr(b) for b in letters} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={character[b]: b for b in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer

"""The shape of a model, read from the `config.json` of a Hugging Face folder.

The four supported families are one decoder with different switches: `ModelConfig` holds those switches, and
anything that the decoder does not implement is refused here, by name, before a weight is touched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from dendrite.errors import CorruptFile, ModelNotFound, UnsupportedModel
from dendrite.quant.scheme import StoredScheme, parse_scheme

CONFIG_FILE = "config.json"
RopeKind = Literal["default", "linear", "llama3"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: the base and how its frequencies are scaled for long contexts."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0
    """Context length of pre-training, in tokens; only `llama3` reads it."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of a decoder; `max_context` in tokens, `dtype` and quantisation as in the checkpoint."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_context: int
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "float32"
    stored: StoredScheme | None = None

    @property
    def query_size(self) -> int:
        """Width of the concatenated query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the concatenated key (or value) heads."""
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `config.json`, as written by transformers 4 or 5.

        Raises:
            ModelNotFound: there is no such file.
            CorruptFile: it is not JSON, or a field is missing or ill-typed.
            UnsupportedModel: it asks for an architecture or an option that Dendrite does not implement.
        """
        path = Path(folder) / CONFIG_FILE
        raw = read_json(path)
        family = _family_of(raw, path)
        try:
            fields = _HuggingFaceConfig.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CorruptFile(str(path), f"field {where!r}: {first['msg']}") from error
        return replace(_build(family, fields, path), stored=parse_scheme(raw.get("quantization_config"), str(path)))


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture fixes, where its config does not say."""

    architecture: str
    qkv_bias: bool | None = False
    """None: the config's `attention_bias` decides for query, key, value and output projections alike."""
    mlp_bias: bool | None = False
    """None: the config's `mlp_bias` decides."""
    qk_norm: bool = False
    head_dim: int | None = None
    window: Literal["always", "switched", "never"] = "never"
    """Whether `sliding_window` holds for all layers, only with `use_sliding_window`, or does not exist."""
    default_window: int | None = None


_FAMILIES = {
    family.architecture: family
    for family in (
        _Family("LlamaForCausalLM", qkv_bias=None, mlp_bias=None),
        _Family("MistralForCausalLM", window="always", default_window=4096),
        _Family("Qwen2ForCausalLM", qkv_bias=True, window="switched", default_window=4096),
        _Family(
            "Qwen3ForCausalLM",
            qkv_bias=None,
            qk_norm=True,
            head_dim=128,
            window="switched",
            default_window=4096,
        ),
    )
}


class _HuggingFaceConfig(BaseModel):
    """The fields of `config.json` that matter, in the old and the new spelling."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    max_position_embeddings: PositiveInt
    rms_norm_eps: PositiveFloat = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    sliding_window: PositiveInt | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    torch_dtype: str | None = None
    dtype: str | None = None


class _RopeFields(BaseModel):
    """A `rope_scaling` or `rope_parameters` dictionary."""

    model_config = ConfigDict(extra="ignore")

    rope_type: str = "default"
    rope_theta: PositiveFloat
    factor: PositiveFloat = 1.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: PositiveInt
    partial_rotary_factor: float = Field(default=1.0)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder.

    Raises:
        ModelNotFound: there is no such file.
        CorruptFile: it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFound(str(path)) from error
    except (OSError, ValueError) as error:
        raise CorruptFile(str(path), str(error)) from error
    if not isinstance(value, dict):
        raise CorruptFile(str(path), "not a JSON object")
    return value


def _family_of(raw: dict[str, Any], path: Path) -> _Family:
    names = raw.get("architectures")
    if not isinstance(names, list) or not names:
        raise CorruptFile(str(path), "field 'architectures' is missing")
    for name in names:
        if name in _FAMILIES:
            break
    else:
        known = ", ".join(sorted(_FAMILIES))
        raise UnsupportedModel(f"{path}: architecture {names[0]!r} is not supported (supported: {known})")
    return _FAMILIES[name]


def _build(family: _Family, fields: _HuggingFaceConfig, path: Path) -> ModelConfig:
    if fields.hidden_act not in ("silu", "swish"):
        raise UnsupportedModel(f"{path}: option hidden_act={fields.hidden_act!r} is not supported (only silu)")
    heads = fields.num_attention_heads
    kv_heads = fields.num_key_value_heads or heads
    if heads % kv_heads:
        raise CorruptFile(str(path), f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
    head_dim = fields.head_dim or family.head_dim
    if head_dim is None:
        if fields.hidden_size % heads:
            raise CorruptFile(str(path), f"hidden_size={fields.hidden_size} is not a multiple of {heads} heads")
        head_dim = fields.hidden_size // heads
    if head_dim % 2:
        raise UnsupportedModel(
            f"{path}: option head_dim={head_dim} is not supported (rotary embedding needs an even one)"
        )
    follows_config = family.qkv_bias is None
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.rms_norm_eps,
        rope=_rope(fields, path),
        max_context=_max_context(family, fields, path),
        tie_embeddings=fields.tie_word_embeddings,
        qkv_bias=fields.attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=follows_config and fields.attention_bias,
        mlp_bias=fields.mlp_bias if family.mlp_bias is None else family.mlp_bias,
        qk_norm=family.qk_norm,
        dtype=_dtype(fields, path),
    )


def _rope(fields: _HuggingFaceConfig, path: Path) -> RopeConfig:
    given = dict(fields.rope_parameters or fields.rope_scaling or {})
    given.setdefault("rope_type", given.pop("type", "default"))
    given.setdefault("rope_theta", fields.rope_theta)
    given.setdefault("original_max_position_embeddings", fields.max_position_embeddings)
    if fields.partial_rotary_factor is not None:
        given.setdefault("partial_rotary_factor", fields.partial_rotary_factor)
    try:
        rope = _RopeFields.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptFile(str(path), f"rope field {first['loc'][0]!r}: {first['msg']}") from error
    if rope.partial_rotary_factor != 1.0:
        raise UnsupportedModel(f"{path}: option partial_rotary_factor={rope.partial_rotary_factor} is not supported")
    match rope.rope_type:
        case "default" | "linear" | "llama3" as kind:
            pass
        case other:
            raise UnsupportedModel(f"{path}: option rope_type={other!r} is not supported (default, linear, llama3)")
    needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ())
    for name in needed:
        if name not in given:
            raise CorruptFile(str(path), f"rope field {name!r} is missing for rope_type={kind!r}")
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise CorruptFile(str(path), "rope field 'high_freq_factor' must be above low_freq_factor")
    return RopeConfig(
        theta=rope.rope_theta,
        kind=kind,
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position=rope.original_max_position_embeddings,
    )


def _max_context(family: _Family, fields: _HuggingFaceConfig, path: Path) -> int:
    """Longest exact context: attention is full here, which a sliding window equals up to its own length."""
    known = ("full_attention", "sliding_attention")
    for layer_type in fields.layer_types or ():
        if layer_type not in known:
            raise UnsupportedModel(f"{path}: option layer_types with {layer_type!r} is not supported")
    window = fields.sliding_window
    if "sliding_window" not in fields.model_fields_set:
        window = family.default_window
    if family.window == "never" or window is None:
        return fields.max_position_embeddings
    if family.window == "switched":
        if not fields.use_sliding_window:
            return fields.max_position_embeddings
        slides = (
            "sliding_attention" in fields.layer_types
            if fields.layer_types is not None
            else fields.max_window_layers < fields.num_hidden_layers
        )
        if not slides:
            return fields.max_position_embeddings
    return min(fields.max_position_embeddings, window)


def _dtype(fields: _HuggingFaceConfig, path: Path) -> str:
    name = (fields.dtype or fields.torch_dtype or "float32").removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise UnsupportedModel(f"{path}: option dtype={name!r} is not supported (float32, bfloat16, float16)")
    return name

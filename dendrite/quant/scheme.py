"""What the `quantization_config` of a Hugging Face `config.json` says of the stored weights.

Three kinds are read: `fp8` (E4M3 with a scale a matrix, or a scale for each block of 128 × 128), `compressed-tensors`
in its `float-quantized` format (a scale a matrix or a row), and `mxfp8` (E8M0 scales of 32 columns).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dendrite.errors import UnsupportedModel

QuantizeMode = Literal["fp8", "fp8_weight_only", "mxfp8", "mxfp8_weight_only"]
"""How products are computed: elements FP8 or MXFP8, of weights and activations, or of weights alone."""
Activations = Literal["dynamic", "static", "none"]
MX_BLOCK = 32
"""Columns that share an E8M0 scale."""
_BLOCK = 128
_PATTERN = "re:"  # before a regular expression among names of modules


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """How a checkpoint's matrices are stored.

    activations: how the checkpoint means them to be scaled: a row at a time, by a stored number, or not at all.
    block: rows and columns that share a scale; None where a matrix or a row has one.
    is_mx: whether scales are E8M0 of 32 columns.
    ignored: names, or regular expressions after `re:`, of modules that are stored as they were.
    """

    activations: Activations
    block: tuple[int, int] | None = None
    is_mx: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def modes(self) -> tuple[QuantizeMode, ...]:
        """The modes in which the stored weights can be used, the checkpoint's own first."""
        if self.is_mx:
            return "mxfp8_weight_only", "mxfp8"
        if self.block is not None:
            return ("fp8_weight_only",)
        return ("fp8_weight_only", "fp8") if self.activations == "none" else ("fp8", "fp8_weight_only")

    @property
    def group(self) -> int:
        """Columns of a row that share a scale; 0 where all do."""
        return MX_BLOCK if self.is_mx else self.block[1] if self.block is not None else 0

    def keeps(self, module: str) -> bool:
        """Whether the weight of `module` is stored as it was."""
        return any(_matches(pattern, module) for pattern in self.ignored)


def parse_scheme(raw: object, where: str) -> StoredScheme | None:
    """The scheme in a `quantization_config`; None where there is none.

    Args:
        raw: the field's value.
        where: names the file in errors.

    Raises:
        UnsupportedModel: it is of a kind, or has an option, that is not read here.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise UnsupportedModel(f"{where}: option 'quantization_config' must be an object")
    match raw.get("quant_method"):
        case "fp8":
            return _fp8(raw, where)
        case "mxfp8":
            return _mxfp8(raw, where)
        case "compressed-tensors":
            return _compressed_tensors(raw, where)
        case other:
            raise UnsupportedModel(
                f"{where}: option 'quantization_config' with quant_method={other!r} is not supported "
                "(fp8, compressed-tensors, mxfp8)"
            )


def _fp8(raw: Mapping[str, Any], where: str) -> StoredScheme:
    if raw.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise _refused(where, "fmt", raw["fmt"], "e4m3")
    block = raw.get("weight_block_size")
    if block is not None and list(block) != [_BLOCK, _BLOCK]:
        raise _refused(where, "weight_block_size", block, f"[{_BLOCK}, {_BLOCK}]")
    scheme = raw.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static") or (block is not None and scheme == "static"):
        raise _refused(where, "activation_scheme", scheme, "dynamic, or static without blocks")
    ignored = _names(raw, "modules_to_not_convert", where) or _names(raw, "ignored_layers", where)
    return StoredScheme(
        activations="static" if scheme == "static" else "dynamic",
        block=None if block is None else (_BLOCK, _BLOCK),
        ignored=("lm_head", *ignored),
    )


def _mxfp8(raw: Mapping[str, Any], where: str) -> StoredScheme:
    block = raw.get("weight_block_size", [1, MX_BLOCK])
    if list(block) != [1, MX_BLOCK]:
        raise _refused(where, "weight_block_size", block, f"[1, {MX_BLOCK}]")
    ignored = _names(raw, "ignored_layers", where) or _names(raw, "modules_to_not_convert", where)
    return StoredScheme("dynamic", is_mx=True, ignored=("lm_head", *ignored))


def _compressed_tensors(raw: Mapping[str, Any], where: str) -> StoredScheme:
    if raw.get("format") != "float-quantized":
        raise _refused(where, "format", raw.get("format"), "float-quantized")
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise _refused(where, "config_groups", groups, "exactly one group")
    (group,) = groups.values()
    if list(group.get("targets", ())) != ["Linear"]:
        raise _refused(where, "targets", group.get("targets"), "['Linear']")
    _require_e4m3(group.get("weights"), ("tensor", "channel"), where, "weights")
    given = group.get("input_activations")
    if given is not None:
        _require_e4m3(given, ("tensor", "token"), where, "input_activations")
        if not given.get("dynamic") and given.get("strategy") != "tensor":
            raise _refused(where, "input_activations", given, "dynamic, or static with one scale a matrix")
    cache = raw.get("kv_cache_scheme")
    if cache is not None:
        _require_e4m3(cache, ("tensor", "attn_head"), where, "kv_cache_scheme")
    return StoredScheme(
        activations="none" if given is None else "dynamic" if given.get("dynamic") else "static",
        ignored=_names(raw, "ignore", where),
    )


def _require_e4m3(given: Any, strategies: tuple[str, ...], where: str, name: str) -> None:
    if not isinstance(given, Mapping) or (given.get("num_bits"), given.get("type")) != (8, "float"):
        raise _refused(where, name, given, "floats of 8 bits")
    if not given.get("symmetric", True) or given.get("strategy") not in strategies:
        raise _refused(where, name, given, f"symmetric, by {' or '.join(strategies)}")


def _names(raw: Mapping[str, Any], option: str, where: str) -> tuple[str, ...]:
    """Names of modules, and regular expressions for them; none where the option is not there."""
    given = raw.get(option) or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise _refused(where, option, given, "a list of names")
    for name in (name for name in given if name.startswith(_PATTERN)):
        try:
            re.compile(name.removeprefix(_PATTERN))
        except re.error as error:
            raise _refused(where, option, name, f"not a regular expression: {error}") from error
    return tuple(given)


def _refused(where: str, option: str, found: object, limit: str) -> UnsupportedModel:
    return UnsupportedModel(f"{where}: quantization_config option {option}={found!r} is not supported ({limit})")


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith(_PATTERN):
        return re.match(pattern.removeprefix(_PATTERN), module) is not None
    return module == pattern or module.startswith(f"{pattern}.") or module.endswith(f".{pattern}")

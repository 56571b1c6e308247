"""Writing a model folder whose matrices are FP8 or MXFP8."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.model.config import CONFIG_FILE, ModelConfig, read_json
from dendrite.model.loader import INDEX_FILE, SINGLE_FILE, Checkpoint
from dendrite.model.weights import tensor_shapes
from dendrite.quant.kv_scales import scale_names
from dendrite.quant.weights import QuantizedWeight, by_mx_blocks, by_rows, by_tensor

Format = Literal["fp8", "mxfp8"]
WeightScales = Literal["row", "tensor"]
_SHARD_BYTES = 4 << 30
_LINEAR = re.compile(r"model\.layers\.\d+\..*_proj\.weight")


def write_quantized(
    source: Path,
    out: Path,
    form: Format,
    *,
    scales: WeightScales = "row",
    kv_scales: Tensor | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> int:
    """Quantise the matrices of the layers of a Hugging Face folder, and copy all else as it is.

    FP8 is written as `compressed-tensors` (format `float-quantized`, activations scaled a row at a time), MXFP8 as
    `mxfp8`. Embedding and lm_head are left as they are, which is what other engines expect.

    Args:
        source: the folder, not quantised.
        out: a folder that does not exist, or is empty.
        form: of the elements and scales.
        scales: of FP8: one for each row of a matrix, or one for all.
        kv_scales: [layers, 2, Hkv] float32 of keys and values, written too; None writes none.
        shard_bytes: most bytes of a safetensors file.

    Returns:
        Bytes of all tensors written.

    Raises:
        InvalidArgument: `out` holds something, the model is quantised already, or `scales` do not go with the format.
        ModelError: the folder cannot be read.
    """
    config = ModelConfig.from_folder(source)
    if config.stored is not None:
        raise InvalidArgument("model", str(source), "must not be quantised already")
    if form == "mxfp8" and scales != "row":
        raise InvalidArgument("scales", scales, "of MXFP8 are those of 32 columns of a row")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidArgument("out", str(out), "must be a new or empty folder")
    with Checkpoint.from_folder(source) as checkpoint:
        checkpoint.check(tensor_shapes(config))
        out.mkdir(parents=True, exist_ok=True)
        written = _write_shards(_tensors(checkpoint, form, scales, kv_scales), out, shard_bytes)
        weights = {info.file.name for name in checkpoint.names if (info := checkpoint.info(name)) is not None}
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in {*weights, INDEX_FILE, CONFIG_FILE}:
            shutil.copyfile(path, out / path.name)
    described = {**read_json(source / CONFIG_FILE), "quantization_config": _describe(form, scales, kv_scales)}
    (out / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n")  # last: without it this is no model
    return written


def _tensors(
    checkpoint: Checkpoint, form: Format, scales: WeightScales, kv_scales: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(checkpoint.names):
        tensor = checkpoint.read(name)
        if _LINEAR.fullmatch(name) is None:
            yield name, tensor
            continue
        weight = _quantized(tensor, form, scales)
        yield name, weight.elements
        if weight.is_mx:
            yield f"{name}_scale_inv", weight.scales.values
        else:
            values = weight.scales.values
            yield f"{name}_scale", values[:1].clone() if scales == "tensor" else values.unsqueeze(1)
    if kv_scales is not None:
        for layer, (keys, values) in enumerate(kv_scales.cpu()):
            for name, found in zip(scale_names(layer), (keys, values), strict=True):
                yield name, found[:1].clone() if _is_uniform(kv_scales) else found.clone()


def _quantized(tensor: Tensor, form: Format, scales: WeightScales) -> QuantizedWeight:
    if form == "mxfp8":
        return by_mx_blocks(tensor)
    return by_rows(tensor) if scales == "row" else by_tensor(tensor)


def _write_shards(tensors: Iterator[tuple[str, Tensor]], out: Path, most: int) -> int:
    """Write as many files as needed, and their index; a single one has the name of a single file."""
    total, size = 0, 0
    places: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    count = 0

    def flush() -> None:
        nonlocal count, size
        save_file(
            {name: tensor.contiguous() for name, tensor in shard.items()}, out / f"{count}.part", {"format": "pt"}
        )
        shard.clear()
        count, size = count + 1, 0

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > most:
            flush()
        shard[name], places[name] = tensor, count
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    names = [SINGLE_FILE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for part, name in enumerate(names):
        (out / f"{part}.part").rename(out / name)
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: names[at] for name, at in places.items()}}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    return total


def _describe(form: Format, scales: WeightScales, kv_scales: Tensor | None) -> dict[str, Any]:
    """The `quantization_config` of the folder."""
    number = {"num_bits": 8, "type": "float", "symmetric": True}
    cache = None
    if kv_scales is not None:
        cache = {**number, "strategy": "tensor" if _is_uniform(kv_scales) else "attn_head", "dynamic": False}
    if form == "mxfp8":
        return {
            "quant_method": "mxfp8",
            "fmt": "e4m3",
            "scale_fmt": "ue8m0",
            "activation_scheme": "dynamic",
            "weight_block_size": [1, 32],
            "ignored_layers": ["lm_head"],
            "kv_cache_scheme": cache,
        }
    group = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": "channel" if scales == "row" else "tensor", "dynamic": False},
        "input_activations": {**number, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": cache,
    }


def _is_uniform(kv_scales: Tensor) -> bool:
    """Whether all heads of every layer share their scales."""
    return bool(torch.equal(kv_scales, kv_scales[:, :, :1].expand_as(kv_scales)))

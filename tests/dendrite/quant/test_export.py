"""Folders that are written are read back bit for bit, by the same and by other names of scales."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import CorruptFile, InvalidArgument, MissingTensor, TensorShapeMismatch, UnsupportedModel
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.model.loader import Checkpoint
from dendrite.quant.export import Format, WeightScales, write_quantized
from dendrite.quant.formats import E4M3
from dendrite.quant.kv_scales import calibrate, read_kv_scales
from dendrite.quant.linear import QuantizedLinear
from dendrite.quant.linear_fp8 import Fp8Linear
from dendrite.quant.weights import by_mx_blocks, by_rows, by_tensor
from tests.recompute import logits_by_recomputation
from tests.tiny_model import write_tiny_model

PROMPT = list(range(40, 75))
WAYS: list[tuple[Format, WeightScales]] = [("fp8", "row"), ("fp8", "tensor"), ("mxfp8", "row")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    """Replace a folder's tensors, and fields of its quantization_config."""
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(settings)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def matrices(decoder: Decoder) -> list[QuantizedLinear]:
    found = [
        linear for layer in decoder.weights.layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
    ]
    assert all(isinstance(linear, QuantizedLinear) for linear in found)
    return [linear for linear in found if isinstance(linear, QuantizedLinear)]


@pytest.mark.parametrize(("form", "scales"), WAYS)
def test_what_is_written_is_read_back_bit_for_bit(
    model: Path, tmp_path: Path, form: Format, scales: WeightScales
) -> None:
    out = tmp_path / "out"
    written = write_quantized(model, out, form, scales=scales)
    stored = load_file(out / "model.safetensors")
    assert written == sum(tensor.nbytes for tensor in stored.values())
    decoder = Decoder.from_folder(out)
    quantize = {"mxfp8": by_mx_blocks, "fp8": by_rows if scales == "row" else by_tensor}[form]
    original = load_file(model / "model.safetensors")
    for index, layer in enumerate(decoder.weights.layers):
        linear = layer.qkv
        assert isinstance(linear, QuantizedLinear)
        start = 0
        for name in ("q_proj", "k_proj", "v_proj"):
            expected = quantize(original[f"model.layers.{index}.self_attn.{name}.weight"])
            rows = slice(start, start + expected.shape[0])
            assert torch.equal(linear.weight[rows].view(torch.uint8), expected.elements.view(torch.uint8))
            assert torch.equal(linear.scales.values[rows], expected.scales.values)
            start = rows.stop
    assert decoder.weights.embedding.dtype == torch.float32
    plain = logits_by_recomputation(Decoder.from_folder(model), PROMPT)
    assert 1e-3 < (logits_by_recomputation(decoder, PROMPT) - plain).norm() / plain.norm() < 0.2


def test_all_else_is_copied(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "fp8")
    assert {path.name for path in out.iterdir()} == {path.name for path in model.iterdir()}
    for name in ("tokenizer.json", "value_head.safetensors"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    with Engine.from_pretrained(out, device="cpu") as engine:
        kids = engine.prefill("abc").fork(2)
        engine.decode(kids, max_tokens=4, ignore_eos=True)
        assert all(len(kid.tokens) == 4 and kid.value is not None for kid in kids)


@pytest.mark.parametrize("form", ["fp8", "mxfp8"])
def test_shards_are_written_and_read(model: Path, tmp_path: Path, form: Format) -> None:
    write_quantized(model, tmp_path / "one", form)
    write_quantized(model, tmp_path / "many", form, shard_bytes=8_000)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    one, many = (Decoder.from_folder(tmp_path / name) for name in ("one", "many"))
    assert torch.equal(logits_by_recomputation(one, PROMPT), logits_by_recomputation(many, PROMPT))


@pytest.mark.parametrize("granularity", ["head", "tensor"])
def test_kv_scales_are_written_and_used(model: Path, tmp_path: Path, granularity: Any) -> None:
    decoder = Decoder.from_folder(model)
    scales = calibrate(decoder, [PROMPT], granularity)
    out = tmp_path / "out"
    write_quantized(model, out, "fp8", kv_scales=scales)
    found = read_kv_scales(out, decoder.config)
    assert found is not None
    assert torch.equal(found, scales)
    with Engine.from_pretrained(out, config=EngineConfig(device="cpu", kv_dtype="fp8")) as engine:
        assert engine._pages.scales is not None
        assert torch.equal(engine._pages.scales, scales)
    assert read_kv_scales(model, decoder.config) is None


def test_block_scales_of_128_are_read_and_used(model: Path, tmp_path: Path) -> None:
    """As `fp8` checkpoints with weight_block_size have them, of sizes that the blocks do not divide."""
    out = tmp_path / "out"
    write_quantized(model, out, "fp8")
    tensors = {
        name: tensor for name, tensor in load_file(out / "model.safetensors").items() if not name.endswith("_scale")
    }
    for name in [name for name in tensors if tensors[name].dtype == E4M3]:
        tensors[f"{name}_scale_inv"] = torch.full((1, 1), 0.01)
    rewrite(out, tensors, quant_method="fp8", weight_block_size=[128, 128], activation_scheme="dynamic")
    decoder = Decoder.from_folder(out)
    for linear in matrices(decoder):
        assert not isinstance(linear, Fp8Linear)
        assert torch.equal(linear.quantized.dequantize(torch.float32), linear.weight.float() * 0.01)
    with pytest.raises(InvalidArgument, match="fp8_weight_only"):
        Decoder.from_folder(out, quantize="fp8")


def test_static_activations_take_the_largest_scale_of_a_product(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "fp8", scales="tensor")
    tensors = load_file(out / "model.safetensors")
    for at, name in enumerate([name for name in tensors if tensors[name].dtype == E4M3]):
        tensors[f"{name.removesuffix('.weight')}.input_scale"] = torch.tensor([0.01 * (at + 1)])
    rewrite(out, tensors, quant_method="fp8", activation_scheme="static")
    linear = Decoder.from_folder(out).weights.layers[0].qkv
    assert isinstance(linear, Fp8Linear)
    expected = max(
        tensors[f"model.layers.0.self_attn.{name}.input_scale"].item() for name in ("q_proj", "k_proj", "v_proj")
    )
    assert linear._input_scale is not None
    assert linear._input_scale.item() == pytest.approx(expected)


def test_quantising_what_is_left_of_a_quantised_checkpoint(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "fp8")
    stored, whole = Decoder.from_folder(out), Decoder.from_folder(out, quantize="fp8")
    assert whole.weights.embedding.dtype == E4M3
    assert whole.weights.nbytes < stored.weights.nbytes
    with pytest.raises(InvalidArgument, match="quantised already"):
        Decoder.from_folder(out, quantize="mxfp8")


def broken(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    name = "model.layers.1.mlp.down_proj.weight"
    scale = f"{name}_scale"
    if kind == "missing":
        del tensors[scale]
    elif kind == "shape":
        tensors[scale] = torch.ones(3, 1)
    elif kind == "type":
        tensors[name] = tensors[name].float()
    elif kind == "nan":
        tensors[scale] = tensors[scale] * torch.nan
    elif kind == "extra":
        tensors["model.layers.1.mlp.down_proj.zero_point"] = torch.zeros(3)
    return tensors


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("missing", MissingTensor),
        ("shape", TensorShapeMismatch),
        ("type", UnsupportedModel),
        ("nan", CorruptFile),
        ("extra", UnsupportedModel),
    ],
)
def test_a_checkpoint_that_is_wrong_names_the_tensor(
    model: Path, tmp_path: Path, kind: str, error: type[Exception]
) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "fp8")
    rewrite(out, broken(load_file(out / "model.safetensors"), kind))
    with pytest.raises(error, match=r"model\.layers\.1\.mlp\.down_proj"):
        Decoder.from_folder(out)


def test_a_product_that_is_quantised_in_part_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "fp8")
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float()
    del tensors[f"{name}.weight_scale"]
    rewrite(out, tensors, ignore=["lm_head", name])
    with pytest.raises(UnsupportedModel, match="only some are quantised"):
        Decoder.from_folder(out)


def test_what_cannot_be_written_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "fp8")
    with pytest.raises(InvalidArgument, match="quantised already"):
        write_quantized(out, tmp_path / "again", "fp8")
    with pytest.raises(InvalidArgument, match="empty folder"):
        write_quantized(model, out, "fp8")
    with pytest.raises(InvalidArgument, match="scales"):
        write_quantized(model, tmp_path / "mx", "mxfp8", scales="tensor")


def test_fp8_tensors_without_a_scheme_are_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "fp8")
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="F8_E4M3"):
        Decoder.from_folder(out)


def test_the_checkpoint_s_scheme_is_part_of_the_config(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(model, out, "mxfp8")
    config = ModelConfig.from_folder(out)
    assert config.stored is not None
    assert config.stored.is_mx
    assert replace(config, stored=None) == ModelConfig.from_folder(model)
    with Checkpoint.from_folder(out) as checkpoint:
        info = checkpoint.info("model.layers.0.mlp.up_proj.weight_scale_inv")
        assert info is not None
        assert info.dtype == "U8"

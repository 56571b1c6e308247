"""Models in 8 bits, and keys and values in FP8, divided among ranks: each has its part of elements and of scales."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.parallel.sharding import Shard
from dendrite.quant.export import write_quantized
from dendrite.quant.formats import E4M3
from dendrite.quant.kv_scales import calibrate, read_kv_scales
from dendrite.quant.linear import QuantizedLinear
from dendrite.quant.linear_fp8 import Fp8Linear
from dendrite.quant.scheme import QuantizeMode, StoredScheme
from tests.dendrite.model.paged import PagedDecoder
from tests.dendrite.model.paged import Path as Tokens
from tests.dendrite.parallel.threads import ThreadFollowers, on_ranks
from tests.tiny_config import TINY
from tests.tiny_model import write_tiny_model

PROMPT = list(range(3, 40))
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
    "attention_bias": True,
    "mlp_bias": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that two ranks can share scales of 128 columns."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES))
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(folder)
    return folder


def describe(folder: Path, tensors: dict[str, torch.Tensor], **scheme: object) -> None:
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))


def by_rows(model: Path, out: Path) -> None:
    write_quantized(model, out, "fp8")


def by_tensors(model: Path, out: Path) -> None:
    write_quantized(model, out, "fp8", scales="tensor")


def by_mx_blocks(model: Path, out: Path) -> None:
    write_quantized(model, out, "mxfp8")


def by_squares(model: Path, out: Path) -> None:
    """Scales of 128 rows and 128 columns; key and value heads are cut inside of them."""
    write_quantized(model, out, "fp8")
    tensors = {name: found for name, found in load_file(out / "model.safetensors").items() if "_scale" not in name}
    noise = torch.Generator().manual_seed(1)
    for name in [name for name in tensors if tensors[name].dtype == E4M3]:
        squares = [-(-size // 128) for size in tensors[name].shape]
        tensors[f"{name}_scale_inv"] = torch.rand(squares, generator=noise) * 0.001 + 0.0005
    describe(out, tensors, quant_method="fp8", weight_block_size=[128, 128])


def by_tensors_static(model: Path, out: Path) -> None:
    by_tensors(model, out)
    tensors = load_file(out / "model.safetensors")
    for at, name in enumerate([name for name in tensors if tensors[name].dtype == E4M3]):
        tensors[f"{name.removesuffix('.weight')}.input_scale"] = torch.tensor(0.01 + 0.001 * at)
    describe(out, tensors, quant_method="fp8", activation_scheme="static")


WRITERS: list[Callable[[Path, Path], None]] = [by_rows, by_tensors, by_mx_blocks, by_squares, by_tensors_static]


def products(decoder: Decoder) -> list[tuple[QuantizedLinear, ...]]:
    found = [(layer.qkv, layer.output, layer.gate_up, layer.down) for layer in decoder.weights.layers]
    assert all(isinstance(linear, QuantizedLinear) for layer in found for linear in layer)
    return found  # type: ignore[return-value]


def part_of(whole: torch.Tensor, which: int, config: ModelConfig, shard: Shard) -> torch.Tensor:
    """A rank's part of a layer's dense product: of each stacked matrix some rows, or some columns."""
    if which in (1, 3):
        return whole.chunk(shard.size, 1)[shard.rank]
    sizes = [config.query_size, config.kv_size, config.kv_size] if which == 0 else [config.intermediate_size] * 2
    return torch.cat([matrix.chunk(shard.size)[shard.rank] for matrix in whole.split(sizes)])


def logits(decoder: Decoder) -> torch.Tensor:
    return PagedDecoder(decoder).run([(Tokens(), PROMPT)])[0]


@pytest.mark.parametrize("write", WRITERS)
def test_a_rank_reads_its_part_of_elements_and_scales(
    write: Callable[[Path, Path], None], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write(model, out)
    whole = Decoder.from_folder(out)
    parts = on_ranks(2, lambda group: Decoder.from_folder(out, group=group))
    for part in parts:
        for mine, all_of_it in zip(products(part), products(whole), strict=True):
            for which, (found, full) in enumerate(zip(mine, all_of_it, strict=True)):
                assert type(found) is type(full)
                expected = part_of(full.quantized.dequantize(torch.float32), which, whole.config, part.shard)
                assert torch.equal(found.quantized.dequantize(torch.float32), expected)
                if isinstance(found, Fp8Linear) and isinstance(full, Fp8Linear):
                    assert found._input_scale == full._input_scale


@pytest.mark.parametrize(
    ("write", "mode", "tolerance"),
    [
        (by_rows, "fp8_weight_only", 1e-5),
        (by_squares, None, 1e-5),
        (by_mx_blocks, None, 1e-5),
        # Here ranks scale activations by what they hold of a row, which rounds them otherwise.
        (by_rows, None, 0.05),
        (by_mx_blocks, "mxfp8", 0.05),
    ],
)
def test_two_ranks_give_the_logits_of_one(
    write: Callable[[Path, Path], None], mode: QuantizeMode | None, tolerance: float, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write(model, out)
    whole = logits(Decoder.from_folder(out, quantize=mode))
    first, second = on_ranks(2, lambda group: logits(Decoder.from_folder(out, quantize=mode, group=group)))
    assert torch.equal(first, second)
    assert (first - whole).norm() <= tolerance * whole.norm()


@pytest.mark.parametrize("mode", ["fp8", "fp8_weight_only", "mxfp8", "mxfp8_weight_only"])
def test_a_plain_model_is_quantised_part_by_part(mode: QuantizeMode, model: Path) -> None:
    plain = logits(Decoder.from_folder(model))
    first, second = on_ranks(2, lambda group: logits(Decoder.from_folder(model, quantize=mode, group=group)))
    assert torch.equal(first, second)
    assert 1e-4 < (first - plain).norm() / plain.norm() < 0.12


def test_columns_that_share_a_stored_scale_are_not_cut(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_quantized(write_tiny_model(tmp_path / "tiny"), out, "mxfp8")
    config = EngineConfig(device="cpu", tensor_parallel=2)
    with pytest.raises(InvalidArgument, match="groups of 32 that share a stored scale") as caught:
        Engine.from_pretrained(out, config=config, followers=ThreadFollowers(out, config))
    assert caught.value.field == "tensor_parallel"


def test_a_whole_model_may_have_columns_that_no_group_divides() -> None:
    config = replace(TINY, intermediate_size=65, stored=StoredScheme("dynamic", is_mx=True))
    assert Shard().of(config) == config


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, and a scale for each head's keys and values."""
    folder = tmp_path_factory.mktemp("models")
    source = write_tiny_model(folder / "tiny")
    scales = calibrate(Decoder.from_folder(source), [PROMPT]) * torch.tensor([1.0, 4.0])
    write_quantized(source, folder / "fp8", "fp8", kv_scales=scales)
    return folder / "fp8"


@pytest.fixture(scope="module")
def engines(scaled: Path) -> Iterator[tuple[Engine, Engine]]:
    """One rank, two ranks, with FP8 keys and values."""
    config = EngineConfig(
        kv_tokens=256, page_size=8, debug_checks=True, device="cpu", quantize="fp8_weight_only", kv_dtype="fp8"
    )
    divided = config.model_copy(update={"tensor_parallel": 2})
    followers = ThreadFollowers(scaled, divided)
    two = Engine.from_pretrained(scaled, config=divided, followers=followers)
    yield Engine.from_pretrained(scaled, config=config), two
    two.close()
    assert not followers.errors


def test_each_rank_has_the_scales_of_its_heads(scaled: Path, engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    whole = one._pages.scales
    assert whole is not None
    assert not torch.equal(whole[:, :, 0], whole[:, :, 1])
    assert torch.equal(two._pages.scales, whole[:, :, :1])  # type: ignore[arg-type]
    parts = [
        read_kv_scales(scaled, shard.of(ModelConfig.from_folder(scaled)), shard) for shard in (Shard(0, 2), Shard(1, 2))
    ]
    assert torch.equal(torch.cat(parts, 2), whole)  # type: ignore[arg-type]


def test_two_ranks_score_forks_over_fp8_as_one_does(engines: tuple[Engine, Engine]) -> None:
    found = []
    for engine in engines:
        kids = engine.prefill("Numbers: 3 7 8 25.").fork(2)  # inside a page: tails are copied
        engine.decode(kids, max_tokens=6, temperature=0.0)
        found.append([engine.score(kid, " Target") for kid in kids])
    one, two = (torch.tensor(scores) for scores in found)
    assert torch.allclose(one, two, atol=0.05)


def test_fp8_of_all_heads_leaves_a_group_and_enters_it_again(engines: tuple[Engine, Engine]) -> None:
    _, two = engines
    root = two.prefill("Numbers: 3 7 8 26.")
    expected = two.score(root, " Target")
    part = two.export_path(root)
    assert part.kv.nbytes == root.length * part.format.token_bytes == part.kv.size
    root.release()
    two.cache.clear_cache()
    again = two.import_path(part)
    assert two.score(again, " Target") == expected


def test_bytes_are_those_of_all_ranks(engines: tuple[Engine, Engine]) -> None:
    one, two = (engine.stats() for engine in engines)
    assert (two.page_bytes, two.kv_scale_bytes) == (one.page_bytes, one.kv_scale_bytes)
    assert one.kv_scale_bytes == 2 * 2 * 2 * 4
    weights = engines[1]._runner.decoder.weights
    layers = [(layer.qkv, layer.output, layer.gate_up, layer.down) for layer in weights.layers]
    of_a_rank = sum(linear.nbytes for layer in layers for linear in layer)
    whole = [
        (layer.qkv, layer.output, layer.gate_up, layer.down) for layer in engines[0]._runner.decoder.weights.layers
    ]
    elements = sum(linear.weight.nbytes for layer in whole for linear in layer)
    assert elements < 2 * of_a_rank < two.weight_bytes == 2 * weights.nbytes

"""Loading safetensors folders, and the ways in which one can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dendrite.errors import CorruptFile, MissingTensor, ModelError, TensorShapeMismatch, UnsupportedModel
from dendrite.model.decoder import Decoder
from dendrite.model.loader import INDEX_FILE, SINGLE_FILE, Checkpoint, read_header
from tests.dendrite.model.families import save_model

NAME = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return save_model("llama", tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save_model("llama", tmp_path, max_shard_size="40KB")


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Replace tensors of a single-file folder; None removes one."""
    tensors = load_file(folder / SINGLE_FILE) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / SINGLE_FILE)


def assert_fails_before_allocating(folder: Path, error: type[ModelError], *names: str) -> None:
    with patch("dendrite.model.weights._assemble") as assemble, pytest.raises(error) as caught:
        Decoder.from_folder(folder)
    assemble.assert_not_called()
    for name in names:
        assert name in str(caught.value)


def test_shards_and_a_single_file_load_alike(tmp_path: Path) -> None:
    one = Decoder.from_folder(save_model("llama", tmp_path / "one"))
    many = Decoder.from_folder(save_model("llama", tmp_path / "many", max_shard_size="40KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for left, right in zip(one.weights.layers, many.weights.layers, strict=True):
        assert torch.equal(left.qkv(torch.eye(48)), right.qkv(torch.eye(48)))
        assert torch.equal(left.gate_up(torch.eye(48)), right.gate_up(torch.eye(48)))
    assert torch.equal(one.logits(torch.eye(48)), many.logits(torch.eye(48)))


def test_weights_take_the_type_asked_for_or_the_checkpoints_own(single: Path) -> None:
    assert Decoder.from_folder(single).dtype == torch.float32
    assert Decoder.from_folder(single, dtype=torch.bfloat16).weights.layers[0].mlp_norm.dtype == torch.bfloat16
    rewrite(single, **{name: t.bfloat16() for name, t in load_file(single / SINGLE_FILE).items()})
    config = json.loads((single / "config.json").read_text()) | {"dtype": "bfloat16"}
    (single / "config.json").write_text(json.dumps(config))
    assert Decoder.from_folder(single).dtype == torch.bfloat16


def test_tied_embeddings_are_one_tensor_whatever_the_file_holds(tmp_path: Path) -> None:
    folder = save_model("qwen2-tied", tmp_path)
    rewrite(folder, **{"lm_head.weight": torch.zeros(97, 48)})
    decoder = Decoder.from_folder(folder)
    assert torch.equal(decoder.logits(torch.eye(48)).T, decoder.weights.embedding)


def test_a_missing_tensor_is_named(single: Path) -> None:
    rewrite(single, **{NAME: None})
    assert_fails_before_allocating(single, MissingTensor, NAME, str(single))


def test_an_untied_model_needs_its_output_matrix(single: Path) -> None:
    rewrite(single, **{"lm_head.weight": None})
    assert_fails_before_allocating(single, MissingTensor, "lm_head.weight")


def test_a_misshaped_tensor_is_named_with_both_shapes(single: Path) -> None:
    rewrite(single, **{NAME: torch.zeros(16, 47)})
    assert_fails_before_allocating(single, TensorShapeMismatch, NAME, "[16, 47]", "[16, 48]", SINGLE_FILE)


def test_an_integer_tensor_is_refused(single: Path) -> None:
    rewrite(single, **{NAME: torch.zeros(16, 48, dtype=torch.int8)})
    assert_fails_before_allocating(single, UnsupportedModel, NAME, "I8")


def test_a_tensor_that_the_decoder_would_not_apply_is_refused(single: Path) -> None:
    extra = "model.layers.0.self_attn.q_proj.bias"
    rewrite(single, **{extra: torch.zeros(48)})
    assert_fails_before_allocating(single, UnsupportedModel, extra)


def test_stored_rotary_frequencies_and_other_heads_are_ignored(single: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "v_head.weight": torch.ones(4)}
    rewrite(single, **extra)
    Decoder.from_folder(single)


def test_a_truncated_file_is_named(single: Path) -> None:
    path = single / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    assert_fails_before_allocating(single, CorruptFile, SINGLE_FILE, "truncated")


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{]"])
def test_a_file_that_is_not_safetensors_is_named(single: Path, content: bytes) -> None:
    (single / SINGLE_FILE).write_bytes(content)
    assert_fails_before_allocating(single, CorruptFile, SINGLE_FILE)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        [],
    ],
)
def test_a_malformed_header_entry_is_named(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"weight": entry}).encode()
    path = tmp_path / SINGLE_FILE
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CorruptFile, match="weight"):
        read_header(path)


def test_a_folder_without_weights_says_which_file_is_missing(single: Path) -> None:
    (single / SINGLE_FILE).unlink()
    assert_fails_before_allocating(single, CorruptFile, SINGLE_FILE, "missing")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.unlink()
    assert_fails_before_allocating(sharded, CorruptFile, shard.name, "missing")


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-4])
    assert_fails_before_allocating(sharded, CorruptFile, shard.name)


def test_an_index_that_names_the_wrong_shard_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    places = index["weight_map"]
    places[NAME] = next(shard for shard in places.values() if shard != places[NAME])
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    assert_fails_before_allocating(sharded, CorruptFile, NAME)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x"}}']
)
def test_a_bad_index_is_named(sharded: Path, text: str) -> None:
    (sharded / INDEX_FILE).write_text(text)
    assert_fails_before_allocating(sharded, CorruptFile, INDEX_FILE)


def test_a_file_that_vanishes_after_the_check_is_named(single: Path) -> None:
    with Checkpoint.from_folder(single) as checkpoint:
        (single / SINGLE_FILE).write_bytes(b"")
        with pytest.raises(CorruptFile, match=SINGLE_FILE):
            checkpoint.read_into(NAME, torch.empty(16, 48))

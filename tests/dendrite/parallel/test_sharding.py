"""Which part of which tensor a rank reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.model.loader import Checkpoint
from dendrite.model.weights import tensor_shapes
from dendrite.parallel.sharding import Shard
from tests.dendrite.model.families import save_model
from tests.tiny_config import TINY


class Recorder:
    """Holds whole tensors, and notes how much of each was read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.read: dict[str, int] = {}

    def read_into(self, name: str, target: Tensor, part: tuple[slice, ...] = ()) -> None:
        found = self.tensors[name][part]
        self.read[name] = found.numel()
        target.copy_(found)


def everything() -> ModelConfig:
    return replace(TINY, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True, num_heads=8, num_kv_heads=4)


@given(size=st.sampled_from([1, 2, 4]), seed=st.integers(0, 100))
def test_the_ranks_parts_make_up_every_tensor(size: int, seed: int) -> None:
    config = everything()
    noise = torch.Generator().manual_seed(seed)
    whole = {name: torch.randn(shape, generator=noise) for name, shape in tensor_shapes(config).items()}
    parts: dict[str, list[Tensor]] = {name: [] for name in whole}
    for rank in range(size):
        shard, source = Shard(rank, size), Recorder(whole)
        for name, shape in tensor_shapes(shard.of(config)).items():
            parts[name].append(torch.full(shape, torch.nan))
            shard.read(source, name, parts[name][-1])
            assert source.read.get(name, 0) <= parts[name][-1].numel()
    for name, tensor in whole.items():
        module, kind = name.split(".")[-2:]
        if module in {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}:
            assert torch.equal(torch.cat(parts[name]), tensor)
        elif module in {"o_proj", "down_proj"}:
            joined = torch.cat(parts[name], dim=1) if kind == "weight" else torch.stack(parts[name]).sum(0)
            assert torch.equal(joined, tensor)
        else:
            assert all(torch.equal(part, tensor) for part in parts[name])


def test_the_default_is_the_whole_model() -> None:
    assert Shard().of(TINY) == TINY


def test_a_part_has_its_share_of_heads_and_of_the_mlp() -> None:
    part = Shard(1, 2).of(TINY)
    assert (part.num_heads, part.num_kv_heads, part.intermediate_size) == (2, 1, 32)
    assert (part.hidden_size, part.head_dim, part.vocab_size) == (TINY.hidden_size, TINY.head_dim, TINY.vocab_size)


@pytest.mark.parametrize(
    ("config", "size", "limit"),
    [
        (TINY, 4, "2 key-value heads"),
        (replace(TINY, num_heads=6, num_kv_heads=3), 2, "3 key-value heads"),
        (replace(TINY, intermediate_size=65), 2, "65 columns of the MLP"),
        (TINY, 0, "1 to 64"),
        (TINY, 65, "1 to 64"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_the_limit(config: ModelConfig, size: int, limit: str) -> None:
    with pytest.raises(InvalidArgument, match=limit) as caught:
        Shard(0, size).of(config)
    assert caught.value.field == "tensor_parallel"


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_of_the_group_is_refused(rank: int) -> None:
    with pytest.raises(InvalidArgument, match="rank"):
        Shard(rank, 2)


def test_a_part_of_a_tensor_is_read_from_its_file(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    with Checkpoint.from_folder(save_model("llama", tmp_path)) as checkpoint:
        whole, part = torch.empty(48, 80), torch.empty(48, 40)
        checkpoint.read_into(name, whole)
        checkpoint.read_into(name, part, (slice(None), slice(40, 80)))
    assert torch.equal(part, whole[:, 40:])


def test_a_decoder_alone_is_of_no_group(tmp_path: Path) -> None:
    assert Decoder.from_folder(save_model("llama", tmp_path)).group is None

"""Calibrated scales cover what was seen, and are read back from checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dendrite.attention.base import ForwardBatch
from dendrite.attention.torch_reference import TorchAttention
from dendrite.errors import CorruptFile, InvalidArgument, MissingTensor, TensorShapeMismatch
from dendrite.kv.storage import KvStorage
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.quant.kv_scales import calibrate, read_kv_scales, scale_names
from tests.tiny_config import TINY
from tests.tiny_model import write_tiny_model

SHAPE = replace(TINY, head_dim=16)
SEQUENCES = [list(range(1, 50)), [5], list(range(60, 30, -1))]


def largest_kv(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """[layers, 2, Hkv] of one sequence, from a storage in float32."""
    count, shape = len(tokens), decoder.config
    pages = -(-count // 16)
    storage = KvStorage(shape.num_layers, pages + 1, 16, shape.num_kv_heads, shape.head_dim)
    decoder.forward(
        ForwardBatch(
            torch.tensor(tokens),
            torch.arange(count),
            torch.arange(count) + 16,
            [0, count],
            [count],
            torch.arange(1, pages + 1).unsqueeze(0),
            [],
        ),
        TorchAttention(storage),
    )
    return storage.pages.abs().amax((1, 3, 5))


def test_scales_are_powers_of_two_that_leave_headroom() -> None:
    decoder = Decoder.random(SHAPE, seed=4)
    scales = calibrate(decoder, SEQUENCES)
    seen = torch.stack([largest_kv(decoder, tokens) for tokens in SEQUENCES]).amax(0)
    assert scales.shape == (2, 2, 2)
    assert torch.equal(scales.log2(), scales.log2().round())
    assert bool((seen / scales <= 224).all())
    assert bool((seen / scales > 112).all())


def test_scales_by_tensor_are_those_of_the_largest_head() -> None:
    decoder = Decoder.random(SHAPE, seed=4)
    by_head, by_tensor = (calibrate(decoder, SEQUENCES, kind) for kind in ("head", "tensor"))
    assert torch.equal(by_tensor, by_head.amax(2, keepdim=True).expand_as(by_head))


def test_there_must_be_something_to_calibrate_on() -> None:
    with pytest.raises(InvalidArgument, match="sequences"):
        calibrate(Decoder.random(SHAPE), [[], []])


def with_scales(folder: Path, scales: dict[str, torch.Tensor]) -> ModelConfig:
    write_tiny_model(folder)
    save_file({**load_file(folder / "model.safetensors"), **scales}, folder / "model.safetensors")
    return ModelConfig.from_folder(folder)


def test_one_scale_or_one_a_head_is_read(tmp_path: Path) -> None:
    scales = {name: torch.tensor([0.5]) for layer in range(2) for name in scale_names(layer)}
    scales[scale_names(1)[0]] = torch.tensor([[[0.25]], [[4.0]]])
    scales[scale_names(0)[1]] = torch.tensor(2.0)
    found = read_kv_scales(tmp_path, with_scales(tmp_path, scales))
    assert found is not None
    assert found.tolist() == [[[0.5, 0.5], [2, 2]], [[0.25, 4], [0.5, 0.5]]]
    Decoder.from_folder(tmp_path)  # the weights' own loader knows these tensors


def test_scales_that_are_wrong_are_refused(tmp_path: Path) -> None:
    good = {name: torch.tensor([0.5]) for layer in range(2) for name in scale_names(layer)}
    name = scale_names(1)[1]
    wrong: list[tuple[dict[str, torch.Tensor], type[Exception]]] = [
        ({key: value for key, value in good.items() if key != name}, MissingTensor),
        ({**good, name: torch.ones(5)}, TensorShapeMismatch),
        ({**good, name: torch.tensor([-1.0])}, CorruptFile),
    ]
    for at, (scales, error) in enumerate(wrong):
        folder = tmp_path / str(at)
        config = with_scales(folder, scales)
        with pytest.raises(error, match=name.replace(".", r"\.")):
            read_kv_scales(folder, config)

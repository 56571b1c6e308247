"""The value head: its formula, and what a broken file says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dendrite.errors import CorruptFile, MissingTensor, TensorShapeMismatch
from dendrite.model.value_head import VALUE_HEAD_FILE, ValueHead

SHAPES = {"dense.weight": (6, 8), "dense.bias": (6,), "out.weight": (1, 6), "out.bias": (1,)}


def save(folder: Path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor | None] = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    kept = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    save_file(kept, folder / VALUE_HEAD_FILE)
    return kept


def test_a_folder_without_the_file_has_no_head(tmp_path: Path) -> None:
    assert ValueHead.from_folder(tmp_path, 8) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_follow_the_formula(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = save(tmp_path)
    head = ValueHead.from_folder(tmp_path, 8, dtype=dtype)
    assert head is not None
    hidden = torch.randn(5, 8)
    dense = hidden @ tensors["dense.weight"].T + tensors["dense.bias"]
    expected = torch.sigmoid((dense * torch.sigmoid(dense)) @ tensors["out.weight"].T + tensors["out.bias"])
    values = head(hidden.to(dtype))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected[:, 0], rtol=0, atol=1e-6 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("name", SHAPES)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path, **{name: None})
    with pytest.raises(MissingTensor, match=name):
        ValueHead.from_folder(tmp_path, 8)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("dense.weight", (6, 9)), ("dense.weight", (48,)), ("dense.bias", (5,)), ("out.weight", (2, 6)), ("out.bias", ())],
)
def test_a_misshaped_tensor_is_named(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    save(tmp_path, **{name: torch.zeros(shape)})
    with pytest.raises(TensorShapeMismatch, match=name):
        ValueHead.from_folder(tmp_path, 8)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / VALUE_HEAD_FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptFile, match=VALUE_HEAD_FILE):
        ValueHead.from_folder(tmp_path, 8)

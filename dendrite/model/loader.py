"""Safetensors files of a model folder, single or sharded.

All headers are read and checked before any tensor is: a folder that cannot be loaded says so at once,
whatever its size. The format: 8 bytes of little-endian header length, a JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dendrite.errors import CorruptFile, MissingTensor, TensorShapeMismatch, UnsupportedModel
from dendrite.model.config import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_BYTES = {**_FLOAT_BYTES, "F8_E4M3": 1, "F8_E8M0": 1, "U8": 1}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says of one tensor; `dtype` is the safetensors name, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class _Entry(BaseModel):
    """A tensor's entry in the header."""

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


class Checkpoint:
    """The tensors of a model folder by name. A context manager: files stay open between reads, until exit."""

    def __init__(self, folder: Path, tensors: dict[str, TensorInfo]) -> None:
        self._folder = folder
        self._tensors = tensors
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Checkpoint:
        """Read the headers of all shards that `model.safetensors.index.json` names, or of the single file.

        Raises:
            CorruptFile: a file is missing, truncated or not safetensors, or the index names what is not
            there.
        """
        folder = Path(folder)
        if (folder / INDEX_FILE).exists():
            return cls(folder, _read_sharded(folder))
        return cls(folder, read_header(folder / SINGLE_FILE))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors in the folder."""
        return frozenset(self._tensors)

    @property
    def folder(self) -> Path:
        """The folder it was read from."""
        return self._folder

    def info(self, name: str) -> TensorInfo | None:
        """What the headers say of a tensor; None if there is none of that name."""
        return self._tensors.get(name)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise unless every tensor in `shapes` is there, of that shape and of a floating-point type.

        Raises:
            MissingTensor: none of the files has it.
            TensorShapeMismatch: its shape is another.
            UnsupportedModel: it is not of a floating-point type.
        """
        for name, shape in shapes.items():
            info = self._tensors.get(name)
            if info is None:
                raise MissingTensor(name, str(self._folder))
            if info.shape != shape:
                raise TensorShapeMismatch(name, info.shape, shape, str(info.file))
            if info.dtype not in _FLOAT_BYTES:
                raise UnsupportedModel(f"tensor {name!r} in {info.file} has type {info.dtype}, which is not supported")

    def read_into(self, name: str, target: Tensor, part: tuple[slice, ...] = ()) -> None:
        """Copy a tensor into `target`, of the same shape, converting it to the target's type and device.

        With `part`, a slice for each of the first dimensions, copy that part, and read no other.
        """
        target.copy_(self.read(name, part))

    def read(self, name: str, part: tuple[slice, ...] = ()) -> Tensor:
        """A tensor, or the `part` of it, as it is stored, in host memory."""
        info = self._tensors[name]
        try:
            if info.file not in self._open:
                self._open[info.file] = self._stack.enter_context(safe_open(info.file, framework="pt"))
            file = self._open[info.file]
            found: Tensor = file.get_slice(name)[part] if part else file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CorruptFile(str(info.file), str(error)) from error
        return found


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes of a safetensors file, from its header alone.

    Raises:
        CorruptFile: the file is missing, is not safetensors, or is shorter than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES + 1
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise CorruptFile(str(path), "truncated, or not a safetensors file")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CorruptFile(str(path), "the file is missing") from error
    except (OSError, ValueError) as error:
        raise CorruptFile(str(path), str(error)) from error
    if not isinstance(header, dict):
        raise CorruptFile(str(path), "the header is not a JSON object")
    header.pop("__metadata__", None)
    return {name: _tensor_info(path, name, entry, size - 8 - length) for name, entry in header.items()}


def _tensor_info(path: Path, name: str, entry: Any, data_bytes: int) -> TensorInfo:
    try:
        fields = _Entry.model_validate(entry)
    except ValidationError as error:
        raise CorruptFile(str(path), f"the header entry of tensor {name!r} is malformed") from error
    start, end = fields.data_offsets
    if end > data_bytes:
        raise CorruptFile(str(path), f"truncated: tensor {name!r} ends at byte {end} of {data_bytes}")
    width = _BYTES.get(fields.dtype)
    if width is not None and end - start != width * prod(fields.shape):
        raise CorruptFile(str(path), f"tensor {name!r} has {end - start} bytes for shape {fields.shape}")
    return TensorInfo(path, fields.dtype, tuple(fields.shape))


def _read_sharded(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX_FILE
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CorruptFile(str(index), "field 'weight_map' is missing or malformed")
    for shard in places.values():
        if Path(shard).name != shard:
            raise CorruptFile(str(index), f"shard {shard!r} is not a file name")
    shards = {shard: read_header(folder / shard) for shard in sorted(set(places.values()))}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise CorruptFile(str(folder / shard), f"tensor {name!r} is not in it, though the index says so")
    return {name: shards[shard][name] for name, shard in places.items()}

"""Matrices that a checkpoint holds in 8 bits, with their scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dendrite.errors import CorruptFile, MissingTensor, TensorShapeMismatch, UnsupportedModel
from dendrite.model.loader import Checkpoint, TensorInfo
from dendrite.parallel.sharding import Shard
from dendrite.quant.formats import E4M3, group_count
from dendrite.quant.scheme import MX_BLOCK, StoredScheme
from dendrite.quant.weights import QuantizedWeight, Scales

_SCALE_NAMES = ("weight_scale", "weight_scale_inv")
_SCALE_TYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A matrix [N, K] as it was stored, and the fixed scale [] of its activations where the checkpoint has one."""

    weight: QuantizedWeight
    input_scale: Tensor | None


class StoredWeights:
    """Reads the quantised matrices of one checkpoint, or one rank's part of each."""

    def __init__(self, checkpoint: Checkpoint, scheme: StoredScheme, shard: Shard) -> None:
        self._checkpoint, self._scheme, self._shard = checkpoint, scheme, shard

    def check(self, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
        """Check every quantised matrix before any is read.

        Args:
            shapes: of all tensors that the whole model needs.

        Returns:
            The shapes of those that are stored as they were, and the names of all that belong to quantised ones.

        Raises:
            MissingTensor, TensorShapeMismatch, UnsupportedModel: naming the tensor that is wrong.
        """
        plain, known = {}, set()
        for name, shape in shapes.items():
            module = name.removesuffix(".weight")
            if len(shape) == 2 and self.holds(module):
                known |= self._check_matrix(module, (shape[0], shape[1]))
            else:
                plain[name] = shape
        return plain, frozenset(known)

    def holds(self, module: str) -> bool:
        """Whether the weight of `module` is stored in 8 bits."""
        return _is_linear(module) and not self._scheme.keeps(module)

    def read(
        self, modules: Sequence[str], rows: Sequence[int], columns: int, device: torch.device
    ) -> StoredWeight | None:
        """This rank's weights of `modules`, of so many rows each, in one matrix; None where they are stored plainly.

        Raises:
            UnsupportedModel: some are quantised and some are not.
        """
        held = [self.holds(module) for module in modules]
        if not any(held):
            return None
        if not all(held):
            raise UnsupportedModel(f"{', '.join(modules)}: run as one product, and only some are quantised")
        group = self._scheme.group
        elements = torch.empty(sum(rows), columns, dtype=E4M3, device=device)
        shape = (sum(rows), group_count(columns, group)) if group else (sum(rows),)
        scales = torch.empty(shape, dtype=torch.uint8 if self._scheme.is_mx else torch.float32, device=device)
        parts = zip(modules, elements.split(list(rows)), scales.split(list(rows)), strict=True)
        for module, part, part_scales in parts:
            self._shard.read(self._checkpoint, f"{module}.weight", part)
            part_scales.copy_(self._read_scales(module, *self._shard.place(module, *part.shape)))
        return StoredWeight(QuantizedWeight(elements, Scales(scales, group)), self._input_scale(modules, device))

    def _check_matrix(self, module: str, shape: tuple[int, int]) -> set[str]:
        weight = self._info(f"{module}.weight")
        if weight.shape != shape:
            raise TensorShapeMismatch(f"{module}.weight", weight.shape, shape, str(weight.file))
        if weight.dtype != "F8_E4M3":
            raise UnsupportedModel(f"tensor '{module}.weight' in {weight.file} has type {weight.dtype}, not F8_E4M3")
        name = self._scale_name(module)
        scale = self._info(name)
        rows, columns = shape
        allowed: list[tuple[int, ...]]
        types: tuple[str, ...]
        if self._scheme.is_mx:
            allowed, types = [(rows, group_count(columns, MX_BLOCK))], ("U8", "F8_E8M0")
        elif self._scheme.block is not None:
            high, wide = self._scheme.block
            allowed, types = [(group_count(rows, high), group_count(columns, wide))], _SCALE_TYPES
        else:
            allowed, types = [(), (1,), (1, 1), (rows,), (rows, 1)], _SCALE_TYPES
        if scale.shape not in allowed:
            raise TensorShapeMismatch(name, scale.shape, allowed[-1], str(scale.file))
        if scale.dtype not in types:
            raise UnsupportedModel(f"tensor {name!r} in {scale.file} has type {scale.dtype}, not {' or '.join(types)}")
        found = {f"{module}.weight", name}
        if self._scheme.activations == "static":
            info = self._info(f"{module}.input_scale")
            if info.shape not in ((), (1,)):
                raise TensorShapeMismatch(f"{module}.input_scale", info.shape, (1,), str(info.file))
            found.add(f"{module}.input_scale")
        return found

    def _read_scales(self, module: str, rows: slice, columns: slice) -> Tensor:
        """Scales of a part of a matrix: [rows, groups], or where a row has one scale [rows], or [1] for all rows."""
        stored = self._checkpoint.read(self._scale_name(module))
        if self._scheme.is_mx:
            stored = stored.view(torch.uint8)
            bad = bool((stored == 255).any())
        else:
            stored = stored.float()
            bad = not bool((stored.isfinite() & (stored > 0)).all())
            if self._scheme.block is not None:
                stored = stored.repeat_interleave(self._scheme.block[0], 0)
            else:
                stored = stored.reshape(-1)
        if bad:
            name = self._scale_name(module)
            raise CorruptFile(str(self._info(name).file), f"tensor {name!r} holds a scale that is no positive number")
        if stored.dim() == 1:
            return stored if stored.numel() == 1 else stored[rows]
        group = self._scheme.group
        return stored[rows, columns.start // group : group_count(columns.stop, group)]

    def _input_scale(self, modules: Sequence[str], device: torch.device) -> Tensor | None:
        """The largest of the modules' scales, so that none saturates more than its checkpoint meant."""
        if self._scheme.activations != "static":
            return None
        found = [self._checkpoint.read(f"{module}.input_scale").float().reshape(()) for module in modules]
        return torch.stack(found).amax().to(device)

    def _scale_name(self, module: str) -> str:
        for name in _SCALE_NAMES:
            if f"{module}.{name}" in self._checkpoint.names:
                return f"{module}.{name}"
        return f"{module}.{_SCALE_NAMES[0]}"

    def _info(self, name: str) -> TensorInfo:
        info = self._checkpoint.info(name)
        if info is None:
            raise MissingTensor(name, str(self._checkpoint.folder))
        return info


def _is_linear(module: str) -> bool:
    return module.endswith("_proj") or module == "lm_head"

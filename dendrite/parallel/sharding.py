"""Which part of a model each rank of a tensor-parallel group holds (Megatron-LM, arXiv 1909.08053, section 3).

Attention heads and the MLP's inner width are divided. A product that makes them (query, key, value, gate, up) is cut
by its outputs, so that each rank makes its own; a product that takes them (output, down) is cut by its inputs, so that
the ranks' results are parts of a sum. Embedding, norms and the output matrix are on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.model.config import ModelConfig

MAX_RANKS = 64
_CUT_BY_OUTPUT = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
_CUT_BY_INPUT = frozenset({"o_proj", "down_proj"})


class TensorSource(Protocol):
    """Reads tensors by name, or parts of them."""

    def read_into(self, name: str, target: Tensor, part: tuple[slice, ...] = ()) -> None:
        """Copy a tensor, or the `part` of it, into `target`."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `size` equal parts of a model; the default is all of it.

    Raises:
        InvalidArgument: there is no such part.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_RANKS:
            raise InvalidArgument("tensor_parallel", self.size, f"must be 1 to {MAX_RANKS}")
        if not 0 <= self.rank < self.size:
            raise InvalidArgument("rank", self.rank, f"must be in 0..{self.size - 1}")

    def of(self, config: ModelConfig) -> ModelConfig:
        """The shape of this part of a model: fewer heads, and a narrower MLP.

        Raises:
            InvalidArgument: the model cannot be divided so.
        """
        whole = {
            "key-value heads": config.num_kv_heads,
            "attention heads": config.num_heads,
            "columns of the MLP (intermediate_size)": config.intermediate_size,
        }
        for what, count in whole.items():
            if count % self.size:
                raise InvalidArgument("tensor_parallel", self.size, f"must divide the model's {count} {what}")
        if self.size > 1 and config.stored is not None and config.stored.group:
            self._check_groups(config, config.stored.group)
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=config.num_kv_heads // self.size,
            intermediate_size=config.intermediate_size // self.size,
        )

    def read(self, source: TensorSource, name: str, target: Tensor) -> None:
        """Fill `target` with this part of the checkpoint's tensor `name`; no other part is read.

        The bias of a product that is cut by its inputs must enter the sum once: rank 0 has it, the others have zeros.
        """
        module, kind = name.split(".")[-2:]
        if self.size > 1 and module in _CUT_BY_OUTPUT:
            source.read_into(name, target, (self._range(target.shape[0]),))
        elif self.size > 1 and module in _CUT_BY_INPUT and kind == "weight":
            source.read_into(name, target, (slice(None), self._range(target.shape[1])))
        elif self.rank > 0 and module in _CUT_BY_INPUT:
            target.zero_()
        else:
            source.read_into(name, target)

    def place(self, module: str, rows: int, columns: int) -> tuple[slice, slice]:
        """Where this rank's part, of so many rows and columns, lies in the matrix of the product `module`."""
        name = module.split(".")[-1]
        return (
            self._range(rows) if name in _CUT_BY_OUTPUT else slice(0, rows),
            self._range(columns) if name in _CUT_BY_INPUT else slice(0, columns),
        )

    def _check_groups(self, config: ModelConfig, group: int) -> None:
        """Refuse to cut columns that share a stored scale."""
        for what, count in (("attention heads'", config.query_size), ("MLP's", config.intermediate_size)):
            if count // self.size % group:
                limit = f"would cut the {what} {count} columns inside groups of {group} that share a stored scale; "
                raise InvalidArgument("tensor_parallel", self.size, limit + "use fewer ranks, or a model in 16 bits")

    def _range(self, count: int) -> slice:
        return slice(self.rank * count, (self.rank + 1) * count)

"""Random inputs of the kernels' tests, with what the decoder's own code makes of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.kv.storage import KvStorage
from dendrite.model.config import RopeConfig
from dendrite.model.rope import Rotation, inverse_frequencies

EPS = 1e-5
PAGE_SIZE = 4


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of what was expected."""
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    return float(difference)


@dataclass(frozen=True)
class Attention:
    """What comes before a layer's attention; shapes as in `qkv_rope_append`."""

    hidden: Tensor
    norm: Tensor
    weight: Tensor
    bias: Tensor | None
    qk_norm: Tensor | None
    positions: Tensor
    slots: Tensor
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def random(
        cls, rows: int, *, heads: int, kv_heads: int, head_dim: int, size: int, biased: bool, normed: bool
    ) -> Attention:
        columns = (heads + 2 * kv_heads) * head_dim
        slots = torch.randperm(rows * 2)[:rows] + PAGE_SIZE
        return cls(
            hidden=torch.randn(rows, size) * 2,
            norm=torch.rand(size) + 0.5,
            weight=torch.randn(columns, size) / size**0.5,
            bias=torch.randn(columns) if biased else None,
            qk_norm=torch.rand(heads + kv_heads, head_dim) + 0.5 if normed else None,
            positions=torch.randint(5000, (rows,)),
            slots=slots.int(),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
        )

    def to(self, device: str, dtype: torch.dtype) -> Attention:
        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, dtype if tensor.is_floating_point() else None)

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: moved(each) for name, each in values.items() if not isinstance(each, int)})

    @property
    def frequencies(self) -> Tensor:
        return inverse_frequencies(RopeConfig(theta=10_000.0), self.head_dim).to(self.hidden.device)

    @cached_property
    def cos_sin(self) -> Tensor:
        angles = self.positions.unsqueeze(1) * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=1)

    @property
    def projected(self) -> Tensor:
        """[M, (Hq + 2 Hkv) D] after the norm, the product and the bias."""
        normed = F.rms_norm(self.hidden, (self.hidden.shape[1],), self.norm, EPS)
        return F.linear(normed, self.weight, self.bias)

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Query and KV memory, full of NaN."""
        rows, hidden = self.hidden.shape[0], self.hidden
        query = hidden.new_full((rows, self.heads, self.head_dim), torch.nan)
        pages = 2 + -(-2 * rows // PAGE_SIZE)
        return query, hidden.new_full((pages, 2, PAGE_SIZE, self.kv_heads, self.head_dim), torch.nan)

    def expected(self) -> tuple[Tensor, Tensor]:
        """The outputs as `Decoder` and `KvStorage` make them."""
        heads, kv_heads = self.heads, self.kv_heads
        projected = self.projected.view(-1, heads + 2 * kv_heads, self.head_dim)
        query_key, value = projected.split((heads + kv_heads, kv_heads), dim=1)
        if self.qk_norm is not None:
            query_key = F.rms_norm(query_key, (self.head_dim,), None, EPS) * self.qk_norm
        rotation = Rotation(self.positions, self.frequencies, self.hidden.dtype)
        query, key = rotation.apply(query_key).split((heads, kv_heads), dim=1)
        _, empty = self.outputs()
        storage = KvStorage(
            1, empty.shape[0], PAGE_SIZE, kv_heads, self.head_dim, self.hidden.dtype, self.hidden.device
        )
        storage.pages.fill_(torch.nan)
        storage.write(0, self.slots.long(), key.contiguous(), value.contiguous())
        return query, storage.pages[0]

"""The memory of the paged KV cache: one tensor, addressed by page and by slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.kv.pages import TailCopy
from dendrite.model.config import ModelConfig
from dendrite.quant.formats import E4M3
from dendrite.quant.weights import quantize_to
from dendrite.transfer import send


class KvStorage:
    """Keys and values of all layers, in pages.

    `pages` is [layers, pages, 2, page_size, Hkv, D], keys before values: per layer the layout that paged
    attention kernels call NHD. A *slot* is a token's place, page * page_size + offset. A *row* is the place
    of one [Hkv, D] key or value in a layer's flattened memory: a slot's value row is page_size after its key
    row.

    Page 0 is scratch: written to when nobody will read, never a node's. Memory starts zeroed.

    In FP8 (E4M3) the memory holds keys and values divided by `scales` [layers, 2, Hkv] float32: those of each layer's
    heads, keys before values. In other types `scales` is None.
    """

    def __init__(
        self,
        layers: int,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        scales: Tensor | None = None,
    ) -> None:
        """Allocate; `scales` go with FP8 alone, where None is 1 for every head.

        Raises:
            InvalidArgument: a size or the scales are not possible.
        """
        if num_pages < 2:
            raise InvalidArgument("num_pages", num_pages, "must be at least 2: page 0 is scratch")
        self.page_size = page_size
        shape = (layers, num_pages, 2, page_size, kv_heads, head_dim)
        self.pages = torch.zeros(shape, dtype=dtype, device=device)
        self.layer_rows = tuple(layer.view(-1, kv_heads, head_dim) for layer in self.pages)
        """Per layer [pages * 2 * page_size, Hkv, D], a view of `pages`, indexed by row."""
        self.scales = _scales(scales, (layers, 2, kv_heads), dtype, self.pages.device)
        # Of FP8 torch copies no rows by index, so bytes are copied.
        self._memory = self.pages.view(torch.uint8) if dtype == E4M3 else self.pages
        self._rows = tuple(layer.view(-1, kv_heads, head_dim) for layer in self._memory)

    @classmethod
    def of(
        cls,
        shape: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: Tensor | None = None,
    ) -> KvStorage:
        """Storage for a model of that shape; `scales` as in the constructor."""
        return cls(shape.num_layers, num_pages, page_size, shape.num_kv_heads, shape.head_dim, dtype, device, scales)

    @property
    def num_pages(self) -> int:
        """Pages, scratch included."""
        return self.pages.shape[1]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.total_bytes // self.num_pages

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        return self.page_bytes // self.page_size

    @property
    def total_bytes(self) -> int:
        """Bytes of all pages; `scale_bytes` come on top."""
        return self.pages.untyped_storage().nbytes()

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales."""
        return 0 if self.scales is None else self.scales.untyped_storage().nbytes()

    def key_rows(self, slots: Tensor) -> Tensor:
        """Row of each slot's key; the same shape as `slots`, int64."""
        pages = torch.div(slots, self.page_size, rounding_mode="floor")
        return slots + pages * self.page_size

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values [T, Hkv, D] at slots [T]."""
        self.write_rows(layer, self.key_rows(slots), key, value)

    def write_rows(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """Like `write`, with the slots' key rows, so that a step computes them once for all layers."""
        memory = self._rows[layer]
        if self.scales is not None:
            key, value = (
                quantize_to(part, by).view(torch.uint8)
                for part, by in zip((key, value), self.scales[layer].unsqueeze(-1), strict=True)
            )
        memory.index_copy_(0, rows, key)
        memory.narrow(0, self.page_size, memory.shape[0] - self.page_size).index_copy_(0, rows, value)

    def copy_tails(self, copies: Sequence[TailCopy]) -> None:
        """Copy tail pages in all layers at once, to be called before the step that writes to them.

        Whole pages are copied: nothing reads a slot past `filled` before its new owner has written it. All
        sources are read before any destination is written, so a page may be freed and handed out again within
        one step.
        """
        if not copies:
            return
        sources, targets = [copy.src_page for copy in copies], [copy.dst_page for copy in copies]
        device = self.pages.device
        ends = send(sources + targets, device).view(2, -1)
        if device.type == "cuda" and set(sources).isdisjoint(targets):
            from dendrite.kernels.pages import copy_pages

            copy_pages(self._memory, ends[0], ends[1])
        else:
            memory = self._memory
            memory.index_copy_(1, ends[1], memory.index_select(1, ends[0]))

    def read_tokens(self, slots: Tensor) -> Tensor:
        """A copy of what lies in slots [T]: [layers, 2, T, Hkv, D], keys before values, on the storage's device.

        Raises:
            InvalidArgument: a slot lies outside the storage.
        """
        layers, *_, kv_heads, head_dim = self.pages.shape
        found = self._all_rows.index_select(1, self._both_rows(slots))
        return found.view(layers, 2, -1, kv_heads, head_dim).view(self.pages.dtype)

    def write_tokens(self, slots: Tensor, data: Tensor) -> None:
        """Fill slots [T] with what `read_tokens` gave, here or in a storage of other pages.

        Raises:
            InvalidArgument: the data does not fit those slots of this storage, or a slot lies outside it.
        """
        layers, *_, kv_heads, head_dim = self.pages.shape
        expected = (layers, 2, len(slots), kv_heads, head_dim)
        if tuple(data.shape) != expected or data.dtype != self.pages.dtype:
            limit = f"must be {list(expected)} of {self.pages.dtype}"
            raise InvalidArgument("data", f"{list(data.shape)} of {data.dtype}", limit)
        rows = data.to(self.pages.device).contiguous().view(self._memory.dtype).view(layers, -1, kv_heads, head_dim)
        self._all_rows.index_copy_(1, self._both_rows(slots), rows)

    @property
    def _all_rows(self) -> Tensor:
        """[layers, pages * 2 * page_size, Hkv, D], a view of the memory."""
        layers, *_, kv_heads, head_dim = self.pages.shape
        return self._memory.view(layers, -1, kv_heads, head_dim)

    def _both_rows(self, slots: Tensor) -> Tensor:
        """The rows of the keys in slots [T] (on the host), then those of the values: [2 T] on the device."""
        limit = self.num_pages * self.page_size
        if len(slots) and not 0 <= int(slots.min()) <= int(slots.max()) < limit:
            raise InvalidArgument("slots", slots.tolist(), f"must be in 0..{limit - 1}")
        rows = self.key_rows(slots)
        return torch.cat([rows, rows + self.page_size]).to(self.pages.device)


def _scales(given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if dtype != E4M3:
        if given is not None:
            raise InvalidArgument("scales", list(given.shape), f"go with keys and values in {E4M3}, not {dtype}")
        return None
    if given is None:
        return torch.ones(shape, device=device)
    if tuple(given.shape) != shape or not bool((given.isfinite() & (given > 0)).all()):
        raise InvalidArgument("scales", list(given.shape), f"must be {list(shape)}, positive and finite")
    return given.to(device, torch.float32, copy=True).contiguous()

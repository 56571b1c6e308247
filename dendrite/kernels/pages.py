"""Copies of KV pages."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _copy_pages(pages, sources, targets, layer_stride, page_size: tl.constexpr, BLOCK: tl.constexpr):
    source = tl.load(sources + tl.program_id(0))
    target = tl.load(targets + tl.program_id(0))
    layer = pages + tl.program_id(1).to(tl.int64) * layer_stride
    for start in range(0, page_size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < page_size
        values = tl.load(layer + source * page_size + at, mask=inside)
        tl.store(layer + target * page_size + at, values, mask=inside)


def copy_pages(pages: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy whole pages in all layers at once.

    Args:
        pages: [layers, pages, ...], contiguous.
        sources: [n] int64 pages to read, none of which is among the targets.
        targets: [n] int64 pages to write.
    """
    size = pages[0, 0].numel()
    _copy_pages[(sources.shape[0], pages.shape[0])](pages, sources, targets, pages.stride(0), size, BLOCK=_BLOCK)

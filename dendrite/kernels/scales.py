"""How the launches of products pass on the scales of their weights."""

from __future__ import annotations

from torch import Tensor

from dendrite.quant.formats import group_count
from dendrite.quant.weights import Scales


def scale_arguments(scales: Scales | None, size: int) -> tuple[Tensor | None, int]:
    """A weight's scales, None where its elements have none, and how many a row of `size` columns has."""
    if scales is None:
        return None, 0
    return scales.values, group_count(size, scales.group) if scales.group else 1


def scale_group(scales: Scales | None) -> int:
    """Columns that share a scale; 0 where a row has one, or none."""
    return scales.group if scales is not None else 0

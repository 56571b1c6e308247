"""What the values of a path's steps say of the whole path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

Aggregate: TypeAlias = Literal["last", "min", "prod", "mean"]
"""How step values become one: Snell et al., 2024 (arXiv 2408.03314), section 5.1, take the last, where the path is
whole; Lightman et al., 2023 (arXiv 2305.20050), the product or the least."""


def aggregate(values: Sequence[float], by: Aggregate) -> float:
    """Aggregate the values of a path's steps, each in [0, 1], first step first; 0 for a path without steps."""
    if not values:
        return 0.0
    if by == "last":
        return values[-1]
    if by == "min":
        return min(values)
    if by == "prod":
        return math.prod(values)
    return math.fsum(values) / len(values)

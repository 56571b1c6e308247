"""Whether a quantity rises over time: a robust line through its measurements, and how far noise alone may tilt it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_CONFIDENCE = 0.95
_MOST_CORRELATED = 0.95
"""A series whose neighbours say the same is taken to say at least a fortieth of what independent values would."""


@dataclass(frozen=True, slots=True)
class Trend:
    """The slope of a line, per unit of time, and the ends of its 95 % confidence interval."""

    slope: float
    low: float
    high: float


def theil_sen(times: Sequence[float], values: Sequence[float]) -> Trend:
    """The median of the slopes between all pairs of measurements (Theil 1950, Sen 1968).

    The interval is Sen's: as many pairs from the middle as Kendall's S may lie from zero by chance. Measurements of
    memory are not independent, for what is allocated stays a while. So the variance of S is multiplied by
    (1 + r) / (1 - r), with r the correlation of neighbours about the line, as is usual for series of time.

    Args:
        times: when each was measured, rising; at least three.
        values: what was measured.

    Raises:
        ValueError: there are fewer than three, or not as many of both.
    """
    if len(times) != len(values) or len(times) < 3:
        raise ValueError(f"{len(times)} times and {len(values)} values; at least three of each are needed")
    when, what = np.asarray(times, np.float64), np.asarray(values, np.float64)
    count = len(when)
    first, second = np.triu_indices(count, 1)
    slopes = np.sort((what[second] - what[first]) / (when[second] - when[first]))
    slope = float(np.median(slopes))
    variance = count * (count - 1) * (2 * count + 5) / 18 * _inflation(what - slope * when)
    reach = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * variance**0.5 / 2
    middle = (len(slopes) - 1) / 2
    low, high = max(0, int(middle - reach)), min(len(slopes) - 1, int(np.ceil(middle + reach)))
    return Trend(slope, float(slopes[low]), float(slopes[high]))


def _inflation(residuals: NDArray[np.float64]) -> float:
    """How many times as uncertain a series is as one of as many independent values."""
    deviations = residuals - residuals.mean()
    power = float(deviations @ deviations)
    correlation = float(deviations[1:] @ deviations[:-1]) / power if power > 0 else 0.0
    correlation = min(max(correlation, 0.0), _MOST_CORRELATED)
    return (1 + correlation) / (1 - correlation)

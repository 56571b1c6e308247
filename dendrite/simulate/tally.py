"""Many durations in little memory: their mean and the longest exactly, their quantiles to a few percent."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LEAST_S, _PER_DECADE, _DECADES = 1e-7, 50, 12


class Tally:
    """Counts durations in buckets of equal ratio, 50 to a decade, from 0.1 µs on; shorter ones count as 0."""

    def __init__(self) -> None:
        self._buckets = np.zeros(_PER_DECADE * _DECADES + 1, np.int64)
        self.count = 0
        self.total_s = 0.0
        self.most_s = 0.0

    def add(self, seconds: float, weight: int = 1) -> None:
        """Take in a duration, as often as `weight` says."""
        at = math.ceil(math.log10(max(seconds, _LEAST_S) / _LEAST_S) * _PER_DECADE)
        self._buckets[min(at, len(self._buckets) - 1)] += weight
        self.count += weight
        self.total_s += weight * seconds
        self.most_s = max(self.most_s, seconds)

    def add_all(self, seconds: NDArray[np.float64]) -> None:
        """Take in durations, at least one."""
        at = np.ceil(np.log10(np.maximum(seconds, _LEAST_S) / _LEAST_S) * _PER_DECADE).astype(np.int64)
        self._buckets += np.bincount(np.minimum(at, len(self._buckets) - 1), minlength=len(self._buckets))
        self.count += len(seconds)
        self.total_s += float(seconds.sum())
        self.most_s = max(self.most_s, float(seconds.max()))

    @property
    def mean_s(self) -> float:
        """The mean; 0 of none."""
        return self.total_s / self.count if self.count else 0.0

    def quantile_s(self, share: float) -> float:
        """The duration that so large a share does not exceed, at most 5 % too long; 0 of none."""
        if not self.count:
            return 0.0
        at = int(np.searchsorted(np.cumsum(self._buckets), math.ceil(share * self.count)))
        return min(self.most_s, _LEAST_S * 10 ** (at / _PER_DECADE)) if at else 0.0

    def clear(self) -> None:
        """Forget everything."""
        self._buckets[:] = 0
        self.count, self.total_s, self.most_s = 0, 0.0, 0.0

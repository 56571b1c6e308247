"""A straight line through measurements, of which the newest count most."""

from __future__ import annotations


class LineFit:
    """y = intercept + slope · x by least squares, neither below 0.

    One measurement more is made up, y = 0 at x = 0, which has the weight of `origin`. It decides where all others have
    nearly the same x, and so say nothing of the intercept.
    """

    def __init__(self, keep: float, origin: float) -> None:
        """Begin without measurements, of which each counts `keep` times what the next one does."""
        self._keep, self._origin = keep, origin
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def __bool__(self) -> bool:
        """Whether anything has been measured."""
        return self._weight > 0

    def add(self, x: float, y: float) -> None:
        """Take in a measurement; neither is negative."""
        keep = self._keep
        self._weight = self._weight * keep + 1
        self._x, self._y = self._x * keep + x, self._y * keep + y
        self._xx, self._xy = self._xx * keep + x * x, self._xy * keep + x * y

    @property
    def line(self) -> tuple[float, float]:
        """Intercept and slope, 0 before the first measurement."""
        if not self._weight:
            return 0.0, 0.0
        weight = self._weight + self._origin
        mean_x, mean_y = self._x / weight, self._y / weight
        variance = self._xx / weight - mean_x**2
        slope = (self._xy / weight - mean_x * mean_y) / variance if variance > 0 else 0.0
        if slope <= 0:
            return self._y / self._weight, 0.0
        intercept = mean_y - slope * mean_x
        return (intercept, slope) if intercept >= 0 else (0.0, self._xy / self._xx)

    def at(self, x: float) -> float:
        """The line's y."""
        intercept, slope = self.line
        return intercept + slope * x

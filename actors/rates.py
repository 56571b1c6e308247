"""How fast a worker has been, as one process has measured it by its own calls."""

from __future__ import annotations

from dataclasses import dataclass

from actors.line_fit import LineFit

_SMOOTHING = 0.3
"""Weight of the newest measurement in an average."""
_PACE_SMOOTHING = 0.1


@dataclass(slots=True)
class Rates:
    """What has been measured of one worker: seconds of a decode step at best, tokens a second, seconds waited.

    `steps` are those of a call, and `crowd` the seconds of a step by the calls under way, of all workers alike: one
    that has always had as many would not tell what fewer take. `pace` is how many times as long this one takes. As long
    as all have always had as many calls, a step is taken to last in proportion to them, for nothing else is known.
    """

    crowd: LineFit
    step_s: float | None = None
    prefill_rate: float | None = None
    waited_s: float = 0.0
    steps: float = 0.0
    pace: float | None = None

    def decoded(self, seconds: float, steps: int, calls: float = 1.0) -> None:
        """Take in a call that decoded `steps` tokens one after the other, one of so many `calls` under way.

        What it took too long, it has waited.
        """
        if steps < 1 or seconds <= 0:
            return
        step = seconds / steps
        self.steps += _SMOOTHING * (steps - self.steps) if self.steps else steps
        self._crowded(calls, step)
        self.step_s = step if self.step_s is None else min(step, self.step_s)
        self.waited_s += _SMOOTHING * (seconds - steps * self.step_s - self.waited_s)

    def _crowded(self, calls: float, step: float) -> None:
        expected = self.crowd.at(calls)
        ratio = step / expected if expected > 0 else 1.0
        self.pace = ratio if self.pace is None else self.pace + _PACE_SMOOTHING * (ratio - self.pace)
        self.crowd.add(calls, step / self.pace)

    def step_with(self, calls: float) -> float:
        """Seconds that a step is likely to take with so many calls under way; 0 if nothing was measured anywhere."""
        return (self.pace or 1.0) * self.crowd.at(calls)

    @property
    def step_per_call(self) -> float:
        """Seconds that each call under way adds to a step."""
        return (self.pace or 1.0) * self.crowd.line[1]

    def prefilled(self, seconds: float, tokens: int) -> None:
        """Take in a call that computed `tokens`."""
        if tokens < 1 or seconds <= 0:
            return
        rate = tokens / seconds
        known = rate if self.prefill_rate is None else self.prefill_rate
        self.prefill_rate = known + _SMOOTHING * (rate - known)

"""What the operations of a cluster cost, as they were measured."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, fields

from dendrite.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a decode step by the number of its rows: a straight line between two measured numbers of rows.

    Below the smallest a step costs what the smallest does; above the largest there is no answer.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rows or list(self.rows) != sorted(set(self.rows)) or self.rows[0] < 1:
            raise InvalidArgument("rows", self.rows, "must be rising numbers, at least one of them")
        if len(self.seconds) != len(self.rows) or not all(0 < each < math.inf for each in self.seconds):
            raise InvalidArgument("seconds", self.seconds, "must be a positive number for each of `rows`")

    @property
    def most_rows(self) -> int:
        """The most rows of a step that was measured."""
        return self.rows[-1]

    def of(self, rows: int) -> float:
        """Seconds of a step.

        Raises:
            InvalidArgument: more rows than were measured.
        """
        if rows > self.most_rows:
            raise InvalidArgument("rows", rows, f"must be at most {self.most_rows}, the most that were measured")
        above = bisect_left(self.rows, rows)
        if above == 0 or self.rows[above] == rows:
            return self.seconds[above]
        share = (rows - self.rows[above - 1]) / (self.rows[above] - self.rows[above - 1])
        return self.seconds[above - 1] + share * (self.seconds[above] - self.seconds[above - 1])


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of single operations: seconds, and bytes.

    Attributes:
        step: a decode step of a worker. A prefill runs `step.most_rows` tokens at a time, each time at the cost of a
            decode step of so many rows, which has the same matrix products.
        event_s: a shard's time for a node event.
        message_s: a process's time for a message that it receives, whatever is in it.
        call_s: a caller's time for a call of an actor.
        round_trip_s: from a call of an actor that does nothing to its reply.
        kv_bytes: KV of a token.
        transfer_bytes_s: rate at which KV moves from one worker to another.
    """

    step: StepTimes
    event_s: float
    message_s: float
    call_s: float
    round_trip_s: float
    kv_bytes: float
    transfer_bytes_s: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float | int) and not 0 <= value < math.inf:
                raise InvalidArgument(field.name, value, "must be a number that is not negative")
        if self.transfer_bytes_s == 0:
            raise InvalidArgument("transfer_bytes_s", 0, "must be positive")

    def prefill_s(self, tokens: int) -> float:
        """Seconds of the steps that compute a prompt."""
        whole, rest = divmod(tokens, self.step.most_rows)
        return whole * self.step.of(self.step.most_rows) + (self.step.of(rest) if rest else 0.0)

    def transfer_s(self, tokens: int) -> float:
        """Seconds until the KV of a prompt is on another worker."""
        return self.round_trip_s + tokens * self.kv_bytes / self.transfer_bytes_s

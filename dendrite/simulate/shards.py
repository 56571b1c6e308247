"""The shards of the tree manager as queues, and the couriers that bring them the workers' events."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dendrite.simulate.tally import Tally

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Shards:
    """Servers that take one message after the other, each with a queue of its own.

    A message that comes at `t` begins when all before it are done: at max(t, end of the last one) (Lindley's recursion,
    1952). That is exact as long as messages come in the order of time, and needs no event for each of them.
    """

    def __init__(self, shards: int, message_s: float, event_s: float) -> None:
        """Make idle servers that need `message_s` for a message, and `event_s` more for each event in it."""
        self._message_s, self._event_s = message_s, event_s
        self._free_at = np.zeros(shards)
        self._given_s = np.zeros(shards)
        self.messages = np.zeros(shards, np.int64)
        self.events = np.zeros(shards, np.int64)
        self.waits = Tally()
        """How long each message waited before it was begun."""

    def __len__(self) -> int:
        return len(self._free_at)

    def take(self, now: float, shards: NDArray[np.intp], events: Counts) -> Floats:
        """One message to each of `shards`, with so many events. Returns the times at which they are done."""
        begin = np.maximum(self._free_at[shards], now)
        work = self._message_s + self._event_s * events
        done: Floats = begin + work
        self._free_at[shards] = done
        self._given_s[shards] += work
        self.messages[shards] += 1
        self.events[shards] += events
        self.waits.add_all(begin - now)
        return done

    def ask(self, now: float, shard: int) -> float:
        """A question without events; returns the time at which it is answered."""
        begin = max(float(self._free_at[shard]), now)
        self._free_at[shard] = begin + self._message_s
        self._given_s[shard] += self._message_s
        return begin + self._message_s

    def busy_s(self, now: float) -> Floats:
        """Seconds that each has worked: those of the work that it was given, but for what is still to do."""
        worked: Floats = self._given_s - np.maximum(self._free_at - now, 0.0)
        return worked

    def forget(self, now: float) -> None:
        """Count from here on; the queues stay as they are."""
        self._given_s = np.maximum(self._free_at - now, 0.0)
        self.messages[:] = 0
        self.events[:] = 0
        self.waits.clear()


class Couriers:
    """A worker's side: what has not been told to each shard yet, with one message under way at a time.

    While a shard is slow to answer its events gather, and go in one message when it has. The courier looks for the
    answer at the end of each of the worker's batches.
    """

    def __init__(self, shards: Shards, round_trip_s: float, lead_lags: Tally, lags: Tally) -> None:
        """Make idle couriers.

        They write down how long each message's oldest event has waited to be taken in: by the first shard into
        `lead_lags`, by another one into `lags`.
        """
        self._lead_lags = lead_lags
        self._lags = lags
        self._shards, self._way_s = shards, round_trip_s / 2
        self.waiting = np.zeros(len(shards), np.int64)
        """Events not sent yet, by shard."""
        self._sent = np.zeros(len(shards), np.int64)
        self._done_at = np.zeros(len(shards))
        self._since = np.full(len(shards), np.inf)
        self._answered_at = np.zeros(len(shards))

    def untold(self, now: float) -> Counts:
        """Events that each shard has not taken in yet: not sent, or in a message that is not done."""
        untold: Counts = self.waiting + np.where(self._done_at > now, self._sent, 0)
        return untold

    def put(self, now: float, events: Counts) -> None:
        """Events, by shard, have happened: send what can be sent."""
        fresh = (self.waiting == 0) & (events > 0)
        self._since[fresh] = now
        self.waiting += events
        ready = np.flatnonzero((self.waiting > 0) & (self._answered_at <= now))
        if len(ready) == 0:
            return
        done = self._shards.take(now + self._way_s, ready, self.waiting[ready])
        lags = done - self._since[ready]
        first = int(ready[0] == 0)
        if first:
            self._lead_lags.add(float(lags[0]))
        if len(lags) > first:
            self._lags.add_all(lags[first:])
        self._answered_at[ready] = done + self._way_s
        self._done_at[ready], self._sent[ready] = done, self.waiting[ready]
        self.waiting[ready] = 0
        self._since[ready] = np.inf

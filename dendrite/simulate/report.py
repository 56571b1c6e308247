"""What a simulation has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MOST_LAG_S = 1.0
"""A worker tells the manager of itself once a second at least; the manager's record should be no older than that."""
MOST_UNTOLD = 0.05
"""Share of a time's events by which a shard may be further behind at its end than at its beginning: messages are large,
and some are always under way."""


@dataclass(frozen=True, slots=True)
class Report:
    """Rates are by the second, shares of 1.

    Attributes:
        seconds: simulated.
        expansions_s, tokens_s, events_s, searches_s: what the workers have done.
        untold_share: events that the shard which is worst off fell behind by, of all its events in this time; the first
            shard does not count if there are others.
        lead_untold_share: the same of the first shard, which places new searches as well.
        events_of_message: mean events of a message to a shard.
        shard_load: each shard's working time.
        lag_p99_s, lead_lag_p99_s: from the oldest event of a message to the time at which the shard has taken it in; of
            all shards but the first if there are others, and of the first.
        message_wait_mean_s: how long a message waits at a shard.
        place_p50_s, place_p99_s: how long a new search waits for the manager to place it.
        worker_load: share of the time that workers are at work.
        wait_mean_s, wait_p99_s: how long an expansion waits for its batch to begin.
        driver_cores: processors that the search drivers' messages take.
        choices: shares of new searches by where their prompt's KV came from.
        moved_bytes_s: KV moved between workers.
        prefill_tokens_s: prompt tokens computed.
    """

    seconds: float
    expansions_s: float
    tokens_s: float
    events_s: float
    untold_share: float
    lead_untold_share: float
    events_of_message: float
    shard_load: tuple[float, ...]
    lag_p99_s: float
    lead_lag_p99_s: float
    message_wait_mean_s: float
    place_p50_s: float
    place_p99_s: float
    worker_load: float
    wait_mean_s: float
    wait_p99_s: float
    driver_cores: float
    searches_s: float
    choices: Mapping[str, float]
    moved_bytes_s: float
    prefill_tokens_s: float

    @property
    def lead_saturated(self) -> bool:
        """Whether the first shard cannot keep up with its events and the placement of new searches."""
        return self.lead_lag_p99_s > MOST_LAG_S or self.lead_untold_share > MOST_UNTOLD

    @property
    def saturated(self) -> bool:
        """Whether the shards, but for the first if there are others, cannot keep up with the workers' events.

        A load of 1 alone does not say so: the later a shard answers, the more events come in its next message, and of
        these the cost of a message is a smaller part.
        """
        return self.lag_p99_s > MOST_LAG_S or self.untold_share > MOST_UNTOLD

"""Whether a call at a node waits for the worker that has it, or the node is copied to another one, and how.

A copy is made by moving the KV (`actors.kv_transfer`) or by computing it again from its tokens, whichever is faster by
the measured rates.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Literal, NamedTuple, TypeAlias, get_args

from actors.fleet import Fleet
from actors.kv_transfer import Arrival, TransferRates
from actors.lineage import Segment
from dendrite.errors import DendriteError, InvalidArgument, OutOfPages
from dendrite.logs import log_event

_log = logging.getLogger("dendrite.cluster")

How: TypeAlias = Literal["stay", "transfer", "recompute"]
Policy: TypeAlias = Literal["auto", "never", "transfer", "recompute"]
"""How nodes may be copied for the sake of a long queue: either way, not at all, or one way only."""

_WAYS: Mapping[Policy, tuple[How, ...]] = {
    "auto": ("transfer", "recompute"),
    "never": (),
    "transfer": ("transfer",),
    "recompute": ("recompute",),
}

PAUSE_S = 5.0
"""How long a worker that had too few pages is not asked again for as many, nor one that KV could not be moved to."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a decision rests on; times in seconds.

    `missing` are the tokens that the target lacks, `transfer_s` and `recompute_s` what it would take to get them there
    either way (None: never measured), `calls` those under way at the node, this one included, and `room` the tokens
    that the target has pages for (None: not known to be short).
    """

    owner_delay_s: float
    target_delay_s: float
    missing: int
    transfer_s: float | None
    recompute_s: float | None
    calls: int = 1
    room: int | None = None

    @property
    def gain(self) -> float:
        """How many times sooner than the owner a copy has to be ready: it takes pages too, but serves all calls."""
        return 1 + 1 / self.calls

    def ready_s(self, how: How) -> float | None:
        """When a call could begin there. A transfer that was never measured is taken to cost as much as computing."""
        if how == "stay":
            return self.owner_delay_s
        seconds = self.transfer_s if how == "transfer" and self.transfer_s is not None else self.recompute_s
        return None if seconds is None else self.target_delay_s + seconds


def decide(estimate: Estimate, policy: Policy = "auto") -> How:
    """What to do for a call at a node whose owner has a queue.

    A copy has to be ready `gain` times sooner than the owner; of two ways the faster is taken, and a transfer if they
    are equally fast, since it leaves the target's cores to others.
    """
    if estimate.owner_delay_s <= 0 or (estimate.room is not None and estimate.room < estimate.missing):
        return "stay"
    ready = {how: estimate.ready_s(how) for how in _WAYS[policy]}
    known = {how: seconds for how, seconds in ready.items() if seconds is not None}
    best = min(known, key=known.__getitem__, default=None)
    return best if best is not None and known[best] * estimate.gain < estimate.owner_delay_s else "stay"


def check_policy(policy: Policy) -> Policy:
    """The policy itself.

    Raises:
        InvalidArgument: there is no such policy.
    """
    if policy not in get_args(Policy):
        raise InvalidArgument("replication", policy, f"must be one of {', '.join(get_args(Policy))}")
    return policy


class Replica(NamedTuple):
    """Where a node is to be copied, and how."""

    worker: int
    how: How


@dataclass(slots=True)
class ReplicationStats:
    """Totals of the copies made for the sake of a queue.

    `transfers` moved `tokens_moved` tokens, which were not computed again, in `bytes_moved` bytes. `refusals` are
    copies for which the target had too few pages, `failures` those that went wrong otherwise: those calls stayed with
    the owner.
    """

    transfers: int = 0
    tokens_moved: int = 0
    bytes_moved: int = 0
    refusals: int = 0
    failures: int = 0


class Replicator:
    """Decides on copies for the clients of one process, and keeps what was measured of them.

    Decisions other than "stay" are logged, with what they rest on, to the logger "dendrite.cluster"; `decisions` counts
    all of them.
    """

    def __init__(self, fleet: Fleet, policy: Policy = "auto") -> None:
        self._fleet, self.policy = fleet, check_policy(policy)
        self._short: dict[int, tuple[float, int]] = {}  # until when a worker has room for so many tokens only
        self._cut_off: dict[int, float] = {}  # until when nothing is moved to a worker
        self._met: set[tuple[int, int]] = set()  # workers that have moved KV to one another
        self.rates = TransferRates()
        self.decisions: Counter[How] = Counter()
        self.stats = ReplicationStats()

    def propose(self, segment: Segment, owner: int, missing: Mapping[int, int]) -> Replica | None:
        """Where to copy a node that a call is for; None if the call should wait for the owner.

        Args:
            segment: the node.
            owner: the worker that has it, and a queue.
            missing: the tokens that each other worker lacks of its path.
        """
        found = [(worker, self.estimate(segment, owner, worker, tokens)) for worker, tokens in missing.items()]
        choices = [(worker, estimate, decide(estimate, self.policy)) for worker, estimate in found]
        copies = [choice for choice in choices if choice[2] != "stay"]
        if not copies:
            worker, estimate, how = min(choices, key=lambda choice: choice[1].target_delay_s)
        else:
            worker, estimate, how = min(copies, key=lambda choice: choice[1].ready_s(choice[2]) or 0.0)
        self.decisions[how] += 1
        self._log(segment, owner, worker, how, estimate)
        return Replica(worker, how) if how != "stay" else None

    def estimate(self, segment: Segment, owner: int, worker: int, missing: int) -> Estimate:
        """What is known of a copy on a worker."""
        rate = self._fleet.prefill_rate(worker)
        until, room = self._short.get(worker, (0.0, 0))
        now = time.monotonic()
        return Estimate(
            owner_delay_s=delay(self._fleet, owner),
            target_delay_s=delay(self._fleet, worker),
            missing=missing,
            transfer_s=inf if now < self._cut_off.get(worker, 0.0) else self.rates.seconds(missing),
            recompute_s=missing / rate if rate else None,
            calls=max(1, segment.pins),
            room=room if now < until else None,
        )

    # ---------------------------------------------------------------- what became of it

    def moved(self, source: int, arrival: Arrival, seconds: float) -> None:
        """Take in a transfer. The first between two workers makes them known to each other, and is not measured."""
        pair = source, arrival.at.worker
        if pair in self._met:
            self.rates.took(arrival, seconds)
        self._met.add(pair)
        self.stats.transfers += 1
        self.stats.tokens_moved += arrival.tokens
        self.stats.bytes_moved += arrival.nbytes

    def failed(self, worker: int, missing: int, error: DendriteError) -> None:
        """Note that a worker did not get a copy of which it lacked so many tokens; it is left alone for a while."""
        until = time.monotonic() + PAUSE_S
        if isinstance(error, OutOfPages):
            self._short[worker] = until, missing - 1
            self.stats.refusals += 1
        else:
            self._cut_off[worker] = until
            self.stats.failures += 1
        fields = {"event": "replication_failed", "worker": worker, "missing": missing, "reason": repr(str(error))}
        log_event(_log, logging.WARNING, fields)

    def _log(self, segment: Segment, owner: int, worker: int, how: How, estimate: Estimate) -> None:
        level = logging.DEBUG if how == "stay" else logging.INFO
        if _log.isEnabledFor(level):
            name = {"tree": segment.name.tree, "node": segment.name.node}
            measured = {"latency_s": self.rates.latency_s, "bytes_per_s": self.rates.bytes_per_s}
            choice = {"decision": how, "owner": owner, "worker": worker}
            fields = {"event": "replication", **name, **choice, **asdict(estimate), **measured}
            log_event(_log, level, fields)


def delay(fleet: Fleet, worker: int) -> float:
    """Seconds that a call at a worker loses to other calls: in a queue, or since more of them make each step longer."""
    return max(fleet.queue_delay(worker), fleet.crowd_delay(worker))


def missing_tokens(segment: Segment, worker: int, has: Callable[[Segment, int], bool]) -> int:
    """Tokens from the nearest ancestor that a worker has to the end of a node."""
    missing = 0
    at: Segment | None = segment
    while at is not None and not has(at, worker):
        missing += len(at.tokens)
        at = at.parent
    return missing

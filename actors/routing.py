"""Which worker a call goes to: where its prefix lies, unless that costs more than to have it elsewhere too."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from actors.fleet import Fleet
from actors.lineage import Segment
from actors.replication import How, Replicator, delay, missing_tokens
from dendrite.logs import log_event

_log = logging.getLogger("dendrite.cluster")

CHUNK_TOKENS = 64
"""Prompts are compared by pieces of so many tokens; a shorter match is not worth a detour."""
_MOST_CHUNKS = 16_384

Decision: TypeAlias = Literal["owner", "spilled", "rebuilt", "prefix", "balanced", "diverted"]
"""Where a call went, and why.

For a node: to its "owner", to another worker since the owner's queue was long ("spilled": see `actors.replication`), or
since there was none ("rebuilt"). For a prompt: where most of it was computed before ("prefix"), where the tree manager
said ("balanced"), or elsewhere since that worker is not alive ("diverted").
"""


class Route(NamedTuple):
    """Where a call at a node goes.

    `how` the worker gets a copy of the node although its `owner` has one; "stay" where it has it, or nobody does.
    """

    worker: int
    how: How = "stay"
    owner: int | None = None


class PrefixMemory:
    """Which workers have computed which beginnings of prompts, by whole chunks; the oldest are forgotten."""

    def __init__(self, limit: int = _MOST_CHUNKS) -> None:
        self._limit = limit
        self._ids = itertools.count(1)
        self._chunks: dict[tuple[int, tuple[int, ...]], tuple[int, dict[int, int]]] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def note(self, tokens: Sequence[int], worker: int, epoch: int) -> None:
        """A worker has computed a prompt, at its epoch."""
        at = 0
        for chunk in _chunks(tokens):
            found = self._chunks.pop((at, chunk), None) or (next(self._ids), {})
            found[1][worker] = epoch
            self._chunks[at, chunk] = found
            at = found[0]
        while len(self._chunks) > self._limit:
            del self._chunks[next(iter(self._chunks))]

    def match(self, tokens: Sequence[int], worker: int, epoch: int) -> int:
        """How many tokens of a prompt a worker has computed before, since its epoch began."""
        return self.matches(tokens, {worker: epoch})[worker]

    def matches(self, tokens: Sequence[int], epochs: Mapping[int, int]) -> dict[int, int]:
        """The same for several workers, by their epochs, in one walk along the prompt."""
        matched = dict.fromkeys(epochs, 0)
        alike = set(epochs)
        at = 0
        for chunk in _chunks(tokens):
            found = self._chunks.get((at, chunk))
            alike = {worker for worker in alike if found is not None and found[1].get(worker) == epochs[worker]}
            if found is None or not alike:
                break
            at = found[0]
            for worker in alike:
                matched[worker] += CHUNK_TOKENS
        return matched


class Router:
    """Chooses workers for the clients of one process, and counts what it has decided.

    Decisions other than "owner" and "balanced" are logged, with what they rest on, to the logger "dendrite.cluster".
    """

    def __init__(self, fleet: Fleet, replicator: Replicator | None = None) -> None:
        self._fleet = fleet
        self.replicator = replicator or Replicator(fleet)
        self.prompts = PrefixMemory()
        self.decisions: Counter[Decision] = Counter()

    def for_prompt(self, tree: int, tokens: Sequence[int], suggested: int) -> int:
        """The worker for a new prompt, given the tree manager's choice. At least one worker must be alive."""
        fleet = self._fleet
        balanced = suggested if suggested in fleet.up else min(fleet.up, key=fleet.in_flight)
        matches = self.prompts.matches(tokens, {worker: fleet.epoch(worker) for worker in fleet.up})
        best = max(matches, key=lambda worker: (matches[worker], worker == balanced))
        inputs = {"tree": tree, "suggested": suggested, "matched": matches[best], "delay_s": fleet.queue_delay(best)}
        if matches[best] > matches[balanced]:
            rate = fleet.prefill_rate(balanced)
            again = (matches[best] - matches[balanced]) / rate if rate else float("inf")
            if fleet.queue_delay(best) < again + fleet.queue_delay(balanced):
                return self._decide("prefix", best, **inputs, recompute_s=again)
        if matches[best] and best == balanced:
            return self._decide("prefix", best, **inputs)
        return self._decide("balanced" if balanced == suggested else "diverted", balanced, **inputs)

    def for_node(self, segment: Segment, has: Callable[[Segment, int], bool]) -> Route:
        """The worker for a call at a node. At least one worker must be alive.

        Args:
            segment: the node.
            has: whether a worker holds a copy of a segment, or is about to.
        """
        fleet = self._fleet
        name = {"tree": segment.name.tree, "node": segment.name.node}
        owners = [worker for worker in fleet.up if has(segment, worker)]
        owner = min(owners, key=lambda worker: (fleet.next_step(worker), fleet.in_flight(worker)), default=None)
        if owner is not None and (delay(fleet, owner) <= 0 or len(owners) == len(fleet.up)):
            return Route(self._decide("owner", owner, **name))
        missing = {worker: missing_tokens(segment, worker, has) for worker in fleet.up if worker not in owners}
        if owner is None:
            best = min(missing, key=lambda worker: (self._rebuilt_in(worker, missing), fleet.in_flight(worker)))
            inputs = {"missing": missing[best], "delay_s": fleet.queue_delay(best)}
            return Route(self._decide("rebuilt", best, **name, **inputs))
        replica = self.replicator.propose(segment, owner, missing)
        if replica is None:
            return Route(self._decide("owner", owner, **name))
        inputs = {"missing": missing[replica.worker], "owner": owner, "owner_delay_s": delay(fleet, owner)}
        return Route(self._decide("spilled", replica.worker, **name, **inputs), replica.how, owner)

    def _rebuilt_in(self, worker: int, missing: Mapping[int, int]) -> tuple[float, int]:
        """When a node that no worker has could be ready, and the tokens to compute for it."""
        rate = self._fleet.prefill_rate(worker)
        again = missing[worker] / rate if rate else float(missing[worker])
        return self._fleet.queue_delay(worker) + again, missing[worker]

    def _decide(self, decision: Decision, worker: int, **inputs: float) -> int:
        self.decisions[decision] += 1
        level = logging.DEBUG if decision in ("owner", "balanced") else logging.INFO
        log_event(_log, level, {"event": "placement", "decision": decision, "worker": worker, **inputs})
        return worker


def _chunks(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    whole = len(tokens) - len(tokens) % CHUNK_TOKENS
    return (tuple(tokens[start : start + CHUNK_TOKENS]) for start in range(0, whole, CHUNK_TOKENS))

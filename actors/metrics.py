"""The metrics of a cluster, and how they reach Prometheus: through the endpoint that Ray has on each machine.

Ray exports a metric as `ray_<name>`, a counter with `_total` and a histogram with `_bucket`, `_sum` and `_count` after
it. A series appears with its first value, so a counter that has never counted is not there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import ray
from ray.util.metrics import Counter, Gauge, Histogram

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

DELAYS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Upper ends of the buckets of histograms, in seconds."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `tags` are the labels that tell its series apart, besides those that Ray adds."""

    name: str
    kind: Kind
    tags: tuple[str, ...]
    description: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus has it."""
        exported = f"ray_{self.name}"
        if self.kind == "counter":
            return (f"{exported}_total",)
        if self.kind == "histogram":
            return (f"{exported}_bucket", f"{exported}_sum", f"{exported}_count")
        return (exported,)


def _of_worker(kind: Kind, **descriptions: str) -> tuple[Metric, ...]:
    return tuple(Metric(f"dendrite_{name}", kind, ("worker",), text) for name, text in descriptions.items())


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        # Of workers.
        *_of_worker(
            "counter",
            decode_tokens="Tokens sampled.",
            forced_tokens="Tokens written since a grammar left no choice.",
            prefill_tokens="Prompt and scored tokens run through the model.",
            recomputed_tokens="Tokens run again since their KV had been dropped.",
            cached_tokens="Prompt tokens found in the prefix cache.",
            prompts="Prompts.",
            prompt_hits="Prompts that began with tokens of the prefix cache.",
            forks="Children made by fork.",
            tail_copies="Tail pages copied since somebody else still read them.",
            preemptions="Generations that lost their KV to others and began again from tokens.",
            overloads="Calls refused since there were too many.",
            busy_seconds="Seconds inside engine steps.",
        ),
        *_of_worker(
            "gauge",
            pages_free="KV pages that nobody has.",
            pages_held="KV pages that live nodes need.",
            pages_cached="KV pages kept for prompts to come, until they are needed.",
            pages_shared="KV pages of segments that two or more live nodes read.",
            live_nodes="Nodes that nobody has released.",
            calls_in_flight="Calls under way.",
            generations_running="Generations in the batch.",
            generations_waiting="Generations and prompts that wait for room in the batch.",
        ),
        # Of the tree manager.
        Metric("dendrite_leases", "gauge", (), "Open leases."),
        Metric("dendrite_lease_expiries", "counter", (), "Leases that ran out since their holders were gone."),
        Metric("dendrite_manager_restarts", "gauge", (), "How often the tree manager has been restarted."),
        # Of the processes that search: those that called `connect`, and search drivers.
        Metric("dendrite_placement_decisions", "counter", ("decision",), "Where calls went, by the reason."),
        Metric("dendrite_copy_decisions", "counter", ("how",), "What became of calls whose worker had a queue."),
        Metric("dendrite_moved_tokens", "counter", (), "Tokens whose KV was moved to another worker, not computed."),
        Metric("dendrite_moved_bytes", "counter", (), "Bytes of KV moved for that."),
        Metric("dendrite_worker_losses", "counter", (), "Losses of a worker that were noticed."),
        Metric("dendrite_recoveries", "counter", (), "Calls made again since a worker was lost."),
        Metric("dendrite_rebuilt_nodes", "counter", (), "Nodes made again from their tokens."),
        Metric("dendrite_rebuilt_tokens", "counter", (), "Tokens computed for that."),
        Metric("dendrite_restarted_searches", "counter", (), "Searches started again since their driver was lost."),
        Metric(
            "dendrite_queue_delay_seconds",
            "histogram",
            ("worker",),
            "How long a call waits at a worker that is at work, looked at once an interval.",
        ),
    )
}
"""All metrics by name."""


class Growth:
    """By how much totals have grown: a counter is told what was added, and whoever counts knows the total."""

    def __init__(self) -> None:
        self._highest: dict[Hashable, float] = {}

    def since_last(self, key: Hashable, total: float) -> float:
        """What was added to a total since it was last told; 0 if it is no higher than then."""
        growth = max(0.0, total - self._highest.get(key, 0.0))
        if growth:
            self._highest[key] = total
        return growth


class Recorder:
    """Records values as Ray's metrics, each made when it is first used."""

    def __init__(self, **labels: str) -> None:
        """Make a recorder whose metrics with a tag named in `labels` have that label, such as `worker="0"`."""
        self._labels = labels
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._growth = Growth()

    def total(self, name: str, value: float, **labels: str) -> None:
        """A counter's total since this process began. One that has not grown is not recorded."""
        metric, tags = self._find(name, labels)
        growth = self._growth.since_last((name, *tags.values()), value)
        if not growth:
            return
        if name not in self._counters:
            self._counters[name] = Counter(name, metric.description, metric.tags)
        self._counters[name].inc(growth, tags)

    def level(self, name: str, value: float, **labels: str) -> None:
        """A gauge's present value."""
        metric, tags = self._find(name, labels)
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, metric.description, metric.tags)
        self._gauges[name].set(value, tags)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more value of a histogram."""
        metric, tags = self._find(name, labels)
        if name not in self._histograms:
            self._histograms[name] = Histogram(name, metric.description, list(DELAYS_S), metric.tags)
        self._histograms[name].observe(value, tags)

    def _find(self, name: str, labels: Mapping[str, str]) -> tuple[Metric, dict[str, str]]:
        metric = METRICS[name]
        given = {**self._labels, **labels}
        return metric, {tag: given[tag] for tag in metric.tags}


def endpoints() -> list[str]:
    """The URLs at which the machines of this process's Ray cluster give their metrics to Prometheus.

    Empty where Ray was installed without what exports them, which both `ray[serve]` and `ray[default]` bring.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in nodes if node["Alive"] and node.get("MetricsExportPort", 0) > 0]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in alive]

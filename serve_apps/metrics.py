"""Prometheus metrics of one ingress. Labels name routes and statuses, never keys, prompts or ids."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dendrite.search.backend import BackendStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts what passes through an ingress."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "dendrite_http_requests", "Requests by outcome", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "dendrite_http_request_seconds",
            "Time to the response's end",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("dendrite_http_requests_in_flight", "Requests under way", registry=registry)
        self.first_token = Histogram(
            "dendrite_first_token_seconds", "Time to the first token", buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("dendrite_prompt_tokens", "Tokens of prompts", registry=registry)
        self.tokens = Counter("dendrite_generated_tokens", "Generated tokens sent", registry=registry)
        self._backend = {
            name: Gauge(f"dendrite_backend_{name}", "A total of the backend", registry=registry)
            for name in ("prefill_tokens", "decode_tokens", "cached_tokens", "forks", "pages_held", "shared_ratio")
        }

    def text(self, backend: BackendStats | None) -> bytes:
        """All figures in Prometheus' text format; those of the backend as they were last known if it is None."""
        if backend is not None:
            for name, gauge in self._backend.items():
                gauge.set(getattr(backend, name))
        return generate_latest(self._registry)

"""Calls of a cluster are spans of OpenTelemetry, where a program collects such."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors import Cluster
from dendrite.config import SamplingParams
from dendrite.errors import NodeReleased


async def test_calls_are_spans_and_tell_what_went_wrong(cluster: Cluster) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with trace.get_tracer("test").start_as_current_span("mine"):
        root = await cluster.prefill(list(range(1, 20)))
        await cluster.expand(root, 2, SamplingParams(max_tokens=3, ignore_eos=True))
        await cluster.release(root, subtree=True)
        with pytest.raises(NodeReleased):
            await cluster.expand(root, 1, SamplingParams(max_tokens=3))
    prefill, expand, failed, mine = exporter.get_finished_spans()
    assert [span.name for span in (prefill, expand, failed)] == [
        "dendrite.prefill",
        "dendrite.expand",
        "dendrite.expand",
    ]
    assert dict(expand.attributes) == {"tree": str(root.tree), "node": root.node, "n": 2}
    assert (expand.status.is_ok, failed.status.is_ok) == (True, False)
    assert {span.parent.span_id for span in (prefill, expand, failed)} == {mine.context.span_id}

"""Spans are there where OpenTelemetry is, and cost nothing where it is not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

sdk = pytest.importorskip("opentelemetry.sdk.trace")

PROGRAM = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

from dendrite import Budget, Engine, run_search
from dendrite.search.tasks.countdown import Countdown

task = Countdown((3, 7, 8, 25), target=92)
with Engine.from_pretrained("countdown", device="cpu") as engine:
    run_search(task, engine, algorithm="best_of_n", budget=Budget(tokens=64), n=2)
print(json.dumps([[span.name, dict(span.attributes)] for span in exporter.get_finished_spans()]))
"""

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from dendrite.spans import span
with span("search", task="x") as found:
    print(found)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_a_search_is_a_span() -> None:
    [[name, attributes]] = json.loads(run(PROGRAM))
    assert name == "dendrite.search"
    assert attributes["algorithm"] == "best_of_n"
    assert attributes["task"]


def test_without_the_package_nothing_is_done() -> None:
    assert run(WITHOUT).strip() == "None"

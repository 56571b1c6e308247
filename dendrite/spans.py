"""Spans of OpenTelemetry around searches and calls, for programs that collect such; without its package nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

Attribute = str | int | float | bool


def span(name: str, **attributes: Attribute) -> AbstractContextManager[object]:
    """A span around a block, a child of the one around it; an error that leaves the block is recorded in it.

    Goes to the tracer provider that the program has set. Where there is no `opentelemetry-api` it does nothing.
    """
    start = _starter()
    return contextlib.nullcontext() if start is None else start(name, attributes)


@functools.cache
def _starter() -> Callable[[str, dict[str, Attribute]], AbstractContextManager[object]] | None:
    try:
        from opentelemetry import trace
    except ImportError:
        return None

    def start(name: str, attributes: dict[str, Attribute]) -> AbstractContextManager[object]:
        tracer = trace.get_tracer("dendrite")
        return tracer.start_as_current_span(f"dendrite.{name}", attributes=attributes)

    return start

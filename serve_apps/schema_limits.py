"""JSON schemas from strangers: how large they may be, and what they may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_apps.errors import HttpError

MAX_SCHEMA_NODES, MAX_SCHEMA_DEPTH = 1_000, 32
_PATTERNS = (("pattern", str), ("patternProperties", Mapping))
_REFERENCES = ("$ref", "$dynamicRef")


def check_schema(schema: object, field: str, *, patterns: bool) -> None:
    """Refuse a JSON schema that could take long to check.

    Args:
        schema: as it came.
        field: names it in errors.
        patterns: accept regular expressions. Python's can take exponential time, so only where others read them.

    Raises:
        HttpError: it is too large or deep, has regular expressions, or refers to other documents.
    """
    nodes, waiting = 0, [(schema, 0)]
    while waiting:
        value, depth = waiting.pop()
        nodes += 1
        if nodes > MAX_SCHEMA_NODES or depth > MAX_SCHEMA_DEPTH:
            raise _too_complex(field, f"at most {MAX_SCHEMA_NODES} values, at most {MAX_SCHEMA_DEPTH} deep")
        if isinstance(value, Mapping):
            _check_keywords(value, field, patterns=patterns)
            waiting.extend((each, depth + 1) for each in value.values())
        elif isinstance(value, Sequence) and not isinstance(value, str):
            waiting.extend((each, depth + 1) for each in value)


def _check_keywords(schema: Mapping[str, Any], field: str, *, patterns: bool) -> None:
    for keyword, kind in () if patterns else _PATTERNS:
        if isinstance(schema.get(keyword), kind):
            raise _too_complex(field, f"{keyword} is not accepted here")
    for keyword in _REFERENCES:
        target = schema.get(keyword)
        if target is not None and not (isinstance(target, str) and target.startswith("#")):
            raise _too_complex(field, f"{keyword} may refer to the schema itself only")


def _too_complex(field: str, limit: str) -> HttpError:
    return HttpError(400, f"{field}: {limit}", param=field, code="schema_too_complex")

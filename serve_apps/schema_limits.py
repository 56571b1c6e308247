"""JSON schemas from strangers: how large they may be, and what they may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from serve_apps.errors import HttpError

MAX_SCHEMA_NODES, MAX_SCHEMA_DEPTH = 1_000, 32
_PATTERNS = (("pattern", str), ("patternProperties", Mapping))
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_NAMES = ("$id", "$anchor", "$dynamicAnchor")
"""What gives a part of a schema a name, so that references may lead there, and those in it elsewhere than from the top.
"""
_OLD_DRAFTS, _OLD_NAME = re.compile("draft-0[34]"), "id"
"""Where the name is called otherwise."""


def check_schema(schema: object, field: str, *, in_python: bool) -> None:
    """Refuse a JSON schema that could take long to check.

    Args:
        schema: as it came.
        field: names it in errors.
        in_python: documents are checked by Python, whose work has no limits of its own. Regular expressions can take
            exponential time there, and so can references: each counts as what it refers to.

    Raises:
        HttpError: it is too large or deep, refers to other documents, or has what Python is not to read.
    """
    limit = f"at most {MAX_SCHEMA_NODES} values, at most {MAX_SCHEMA_DEPTH} deep"
    old = isinstance(schema, Mapping) and _OLD_DRAFTS.search(str(schema.get("$schema")))
    names = (*_NAMES, _OLD_NAME) if old else _NAMES
    nodes, waiting = 0, [(schema, 0)]
    while waiting:
        value, depth = waiting.pop()
        nodes += 1
        if nodes > MAX_SCHEMA_NODES or depth > MAX_SCHEMA_DEPTH:
            raise _too_complex(field, f"{limit}, what is referred to included" if in_python else limit)
        if isinstance(value, Mapping):
            _check_references(value, field)
            waiting.extend((each, depth + 1) for each in value.values())
            if in_python:
                _check_for_python(value, field, names if depth else ())
                waiting.extend((each, depth + 1) for each in _targets(schema, value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            waiting.extend((each, depth + 1) for each in value)


def _check_references(part: Mapping[str, Any], field: str) -> None:
    for keyword in _REFERENCES:
        target = part.get(keyword)
        if target is not None and not (isinstance(target, str) and target.startswith("#")):
            raise _too_complex(field, f"{keyword} may refer to the schema itself only")


def _check_for_python(part: Mapping[str, Any], field: str, names: Sequence[str]) -> None:
    for keyword, kind in _PATTERNS:
        if isinstance(part.get(keyword), kind):
            raise _too_complex(field, f"{keyword} is not accepted here")
    for keyword in names:
        if isinstance(part.get(keyword), str):
            raise _too_complex(field, f"{keyword} is not accepted here; refer to parts by their place, as in #/$defs/a")


def _targets(schema: object, part: Mapping[str, Any]) -> Iterator[object]:
    """What a part refers to. A reference that leads nowhere is somebody else's to refuse."""
    for keyword in _REFERENCES:
        if not isinstance(reference := part.get(keyword), str):
            continue
        place = schema
        for step in unquote(reference).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping):
                place = place.get(step)
            elif isinstance(place, Sequence) and not isinstance(place, str) and step.isdecimal():
                place = place[int(step)] if int(step) < len(place) else None
            else:
                place = None
        yield place


def _too_complex(field: str, limit: str) -> HttpError:
    return HttpError(400, f"{field}: {limit}", param=field, code="schema_too_complex")

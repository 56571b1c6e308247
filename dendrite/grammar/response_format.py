"""The `response_format` of an OpenAI-style request as a grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dendrite.config import checked
from dendrite.errors import InvalidArgument
from dendrite.grammar.spec import Grammar


def grammar_of(response_format: Mapping[str, Any] | None) -> Grammar | None:
    """What a completion must follow; None for plain text.

    Args:
        response_format: `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema":
            {"name": …, "schema": {…}}}`, whose `strict` changes nothing: a schema always holds.

    Raises:
        InvalidArgument: names the field that is missing or not known.
    """
    kind = "text" if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar(json_schema={"type": "object"})
    if kind != "json_schema":
        raise InvalidArgument("response_format.type", kind, "must be text, json_object or json_schema")
    holder = response_format.get("json_schema")
    if not isinstance(holder, Mapping) or holder.get("schema") is None:
        raise InvalidArgument("response_format.json_schema", holder, "must be an object with a schema")
    return checked(Grammar, {"json_schema": holder["schema"]})

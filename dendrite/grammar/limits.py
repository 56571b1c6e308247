"""How large a grammar may be, and how much work each of its steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dendrite.errors import GrammarError
from dendrite.grammar.spec import Grammar

_Count = Annotated[int, Field(ge=1)]


class GrammarLimits(BaseModel):
    """Bounds on a grammar's text, then on what llguidance may spend on it.

    One that is passed while a text is generated ends that generation alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_bytes: _Count = 262_144
    """Longest text of a grammar, in UTF-8."""
    nesting: _Count = 64
    """Deepest nesting of a JSON schema's objects and arrays."""
    grammar_symbols: _Count = 500_000
    """Most symbols of the compiled grammar's productions."""
    lexer_fuel: _Count = 1_000_000
    """Work on the regular expressions while compiling; about 50,000 a millisecond."""
    lexer_states: _Count = 250_000
    """Most states of the lexer, 1 to 2 kB each."""
    step_lexer_fuel: _Count = 200_000
    """Work of the lexer in one step; about 14,000 a millisecond."""
    row_items: _Count = 2_000
    """Most Earley items at one place of the text: about four for each property that may stand there."""
    step_items: _Count = 50_000
    """Most Earley items in one step; about 20,000 a millisecond."""


def check_size(grammar: Grammar, limits: GrammarLimits) -> None:
    """Refuse a grammar for its length or its nesting.

    Raises:
        GrammarError: names the place, the size and the limit.
    """
    place = "$" if grammar.kind == "json_schema" else grammar.kind
    size = len(grammar.source.encode("utf-8", "surrogatepass"))
    if size > limits.source_bytes:
        raise GrammarError(place, f"{size} bytes are over the limit of {limits.source_bytes}")
    if grammar.json_schema is None:
        return
    for path, depth in _nested(json.loads(grammar.json_schema)):
        if depth > limits.nesting:
            raise GrammarError(path, f"nested deeper than the limit of {limits.nesting}")


def _nested(schema: object) -> Iterator[tuple[str, int]]:
    """Path and depth of every object and array in a schema, which is at depth 1 itself."""
    stack: list[tuple[str, int, object]] = [("$", 1, schema)]
    while stack:
        path, depth, part = stack.pop()
        if isinstance(part, dict):
            yield path, depth
            stack.extend((f"{path}.{key}", depth + 1, value) for key, value in part.items())
        elif isinstance(part, list):
            yield path, depth
            stack.extend((f"{path}[{at}]", depth + 1, value) for at, value in enumerate(part))

"""Grammars that the tests of generation use, on the tiny model, whose tokens are bytes."""

from __future__ import annotations

from dendrite.grammar import Grammar

DIGITS = Grammar(regex="[0-9]{3}")
FLAG = Grammar(
    json_schema={
        "type": "object",
        "properties": {"flag": {"type": "boolean"}, "other": {"type": "boolean"}},
        "required": ["flag", "other"],
        "additionalProperties": False,
    },
    white_space=False,
)
FLAGS = {f'{{"flag":{a},"other":{b}}}' for a in ("true", "false") for b in ("true", "false")}
"""All documents of `FLAG`."""
HEAVY = Grammar(regex="[ab]*a[ab]{60}")
"""Takes more states the longer the text is."""
PROMPT = "prompt "

"""The form that a request asks for, as the grammar that its generations are held to."""

from __future__ import annotations

import asyncio

from dendrite.errors import GrammarError
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.response_format import grammar_of
from dendrite.grammar.spec import Grammar
from dendrite.grammar.support import check_grammar
from serve_apps.errors import HttpError
from serve_apps.openai_schemas import ResponseFormat
from serve_apps.schema_limits import check_schema

_SCHEMA = "response_format.json_schema.schema"


async def grammar_for(wanted: ResponseFormat | None, limits: GrammarLimits) -> Grammar | None:
    """The grammar of a form, checked before anything is generated, so that a stream too fails with a status.

    Raises:
        HttpError: 400; the schema is over a limit, or asks for what no grammar can enforce.
    """
    if wanted is not None and wanted.json_schema is not None:
        # Checked by the grammar's own automata, whose work has limits.
        check_schema(wanted.json_schema.json_schema, _SCHEMA, in_python=False)
    grammar = grammar_in(wanted)
    if grammar is None:
        return None
    try:
        await asyncio.to_thread(check_grammar, grammar, limits)
    except GrammarError as error:
        raise HttpError(400, f"{_SCHEMA}: {error}", param=_SCHEMA, code="invalid_schema") from None
    return grammar


def grammar_in(wanted: ResponseFormat | None) -> Grammar | None:
    """The grammar of a form that `grammar_for` has let pass; None where it is any text."""
    if wanted is None or wanted.type == "text":
        return None
    return grammar_of(wanted.model_dump(by_alias=True, exclude_none=True))

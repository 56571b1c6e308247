"""Grammars from files that the command line names."""

from __future__ import annotations

from pathlib import Path

from dendrite.config import checked
from dendrite.errors import InvalidArgument
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.spec import Grammar


def load_schema(file: Path) -> Grammar:
    """The grammar of a JSON schema, without white space: documents then end sooner.

    Raises:
        InvalidArgument: the file can't be read, or holds no JSON schema.
        GrammarError: the schema uses what no grammar can enforce; names the place.
    """
    from dendrite.grammar.support import check_grammar  # loads llguidance

    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument("json_schema", str(file), f"cannot be read: {error}") from error
    grammar = checked(Grammar, {"json_schema": text, "white_space": False})
    check_grammar(grammar, GrammarLimits())
    return grammar

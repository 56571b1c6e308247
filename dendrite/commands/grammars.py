"""Grammars from files that the command line names."""

from __future__ import annotations

from pathlib import Path

from dendrite.commands.files import read_text
from dendrite.config import checked
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.spec import Grammar


def load_schema(file: Path) -> Grammar:
    """The grammar of a JSON schema, without white space: documents then end sooner.

    Raises:
        InvalidArgument: the file can't be read, or holds no JSON schema.
        GrammarError: the schema uses what no grammar can enforce; names the place.
    """
    from dendrite.grammar.support import check_grammar  # loads llguidance

    grammar = checked(Grammar, {"json_schema": read_text("json_schema", file), "white_space": False})
    check_grammar(grammar, GrammarLimits())
    return grammar

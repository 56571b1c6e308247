"""Whether llguidance can follow a grammar at all and, if not, which part of it is to blame. Needs no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits

from dendrite.errors import GrammarError
from dendrite.grammar.limits import GrammarLimits, check_size
from dendrite.grammar.spec import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_WHITE_SPACE = r"( |\n[ \t]{0,16})?"
"""Between the parts of a document, as printers set it. Without a bound a model may write nothing else."""
_MANY = ("properties", "patternProperties", "$defs", "definitions")
_ONE = ("additionalProperties", "items", "additionalItems")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")


def parser_limits(limits: GrammarLimits) -> LLParserLimits:
    """The limits as llguidance takes them; its errors then quote neither schema nor text."""
    return LLParserLimits(
        initial_lexer_fuel=limits.lexer_fuel,
        step_lexer_fuel=limits.step_lexer_fuel,
        step_max_items=limits.step_items,
        max_items_in_row=limits.row_items,
        max_lexer_states=limits.lexer_states,
        max_grammar_size=limits.grammar_symbols,
        verbose_errors=False,
    )


def translated(grammar: Grammar) -> str:
    """The grammar in llguidance's own form."""
    if grammar.json_schema is not None:
        return LLMatcher.grammar_from_json_schema(grammar.json_schema, _white_space(grammar))
    if grammar.regex is not None:
        return LLMatcher.grammar_from_regex(grammar.regex)
    return LLMatcher.grammar_from_lark(grammar.source)


def _white_space(grammar: Grammar) -> JsonCompileOptions:
    """What llguidance is told of white space, which would win over what the schema says of it."""
    own = json.loads(grammar.source).get("x-guidance")
    if isinstance(own, dict) and not own.keys().isdisjoint(("whitespace_flexible", "whitespace_pattern")):
        return {}
    return {"whitespace_pattern": _WHITE_SPACE} if grammar.white_space else {"whitespace_flexible": False}


def check_grammar(grammar: Grammar, limits: GrammarLimits) -> None:
    """Refuse what is too large, malformed, unsatisfiable, or uses a keyword that cannot be enforced.

    Raises:
        GrammarError: names the innermost part of a schema that is refused by itself for the same reason.
    """
    check_size(grammar, limits)
    reason = _refusal(translated(grammar), parser_limits(limits))
    if not reason:
        return
    if grammar.json_schema is None:
        raise GrammarError(grammar.kind, reason)
    raise GrammarError(_blamed(json.loads(grammar.json_schema), reason, parser_limits(limits)), reason)


def _refusal(text: str, limits: LLParserLimits) -> str:
    failed, messages = LLMatcher.validate_grammar_with_warnings(text, limits=limits)
    if not failed:
        return ""
    # What follows is the place as a URI; it is named by its path instead.
    return "; ".join(" ".join(message.split()) for message in messages).split(" while processing json-schema:")[0]


def _blamed(root: Any, reason: str, limits: LLParserLimits) -> str:
    """JSONPath of the innermost subschema that is refused for `reason` on its own, with the root's definitions."""
    if not isinstance(root, dict):
        return "$"
    definitions = {key: root[key] for key in ("$schema", "$defs", "definitions") if key in root}
    path, part = "$", root
    while True:
        for step, inner in _subschemas(part):
            alone = LLMatcher.grammar_from_json_schema({**definitions, **inner})
            if _refusal(alone, limits) == reason:
                path, part = path + step, inner
                break
        else:
            return path


def _subschemas(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas directly inside one, with the step that leads there."""
    for key in _MANY:
        if isinstance(part.get(key), dict):
            yield from ((f".{key}.{name}", inner) for name, inner in part[key].items() if isinstance(inner, dict))
    for key in _ONE:
        if isinstance(part.get(key), dict):
            yield f".{key}", part[key]
    for key in _LISTS:
        if isinstance(part.get(key), list):
            yield from ((f".{key}[{at}]", inner) for at, inner in enumerate(part[key]) if isinstance(inner, dict))

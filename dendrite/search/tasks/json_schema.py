"""JSON-schema filling: write a document that is valid under a schema, as an instruction asks.

The model writes under the schema's grammar, so a document that it completes is valid. The rules below don't rely on
that: they judge any text. The syntax of what is written so far is followed byte by byte, so that a text ends at its
first mistake. Whether the schema holds is asked of whole documents only: an order of properties that it doesn't mention
is no mistake, and what a keyword such as `minItems` or `if` forbids can often not be told from a part.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from dendrite.errors import GrammarError, InvalidArgument
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.spec import Grammar
from dendrite.grammar.support import check_grammar
from dendrite.limits import check_whole
from dendrite.search.task import Split, Task

_DEFAULT_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SPLIT = Split(max_tokens=64, stop=("\n",))
_END = 256
"""Id of the token after the 256 bytes: the end of the sequence, which a matcher must have."""

# RFC 8259. llguidance's own grammar of a schema is stricter: it fixes the order of properties, for one.
_JSON = r"""
%llguidance {"allow_initial_skip": true}
%ignore /[ \t\r\n]+/
start: value
value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" (member ("," member)*)? "}"
member: STRING ":" value
array: "[" (value ("," value)*)? "]"
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/
STRING: /"([^"\\\x00-\x1f]|\\(["\\\/bfnrt]|u[0-9a-fA-F]{4}))*"/
"""


@dataclass(frozen=True, slots=True)
class JsonSchema(Task):
    """The problem of writing a JSON document that is valid under `schema`.

    The text is the document, from its first byte; what follows a complete one is ignored. A number that is a document
    by itself ends once something else follows. The reward doesn't look at what the instruction asks.

    `format` says nothing about validity, as the standard has it. A reference to another document leads nowhere, unless
    that is the schema of a dialect of JSON Schema.

    Args:
        schema: The schema, of any dialect that its `$schema` names; else of draft 2020-12.
        instruction: What the document should say, in words.
        split: Where a thought ends: by default at a line's end, or after 64 tokens of a longer line.
        max_depth: Most thoughts of a document.

    Raises:
        InvalidArgument: `schema` is no valid schema (the message tells where), `instruction` is empty, or `split` or
            `max_depth` is not what it should be.
    """

    schema: Mapping[str, Any] = field(hash=False)
    instruction: str
    split: Split = _SPLIT
    max_depth: int = 64
    _empty: LLMatcher = field(init=False, repr=False, compare=False)
    _grammar: Grammar = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise InvalidArgument("instruction", self.instruction, "must be a text that is not empty")
        if not isinstance(self.split, Split):
            raise InvalidArgument("split", self.split, "must be a Split")
        check_whole("max_depth", self.max_depth, 1)
        object.__setattr__(self, "schema", _own(self.schema))
        _check(self.schema)
        object.__setattr__(self, "_empty", _matcher())
        object.__setattr__(self, "_grammar", _grammar(self.schema))

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the matcher behind: it doesn't pickle."""
        return type(self), (self.schema, self.instruction, self.split, self.max_depth)

    @property
    def name(self) -> str:
        """The instruction in short, such as "json_schema Describe a city."."""
        return f"json_schema {textwrap.shorten(self.instruction, 60, placeholder='…')}"

    @property
    def grammar(self) -> Grammar:
        """The schema; the syntax of JSON alone where the schema uses a keyword that no grammar can enforce."""
        return self._grammar

    @property
    def prompt(self) -> str:
        """The instruction and the schema, up to where the document goes."""
        schema = json.dumps(self.schema, indent=2, ensure_ascii=False)
        return (
            f"{self.instruction.strip()}\n\nAnswer with one JSON document that is valid under this schema:\n"
            f"```json\n{schema}\n```\n\nDocument:\n```json\n"
        )

    def is_terminal(self, text: str) -> bool:
        """Whether `text` holds a complete document, or can't become one."""
        return self._read(text).final

    def reward(self, text: str) -> float:
        """1.0 if `text` is a document that is valid under the schema, or begins with one, else 0.0."""
        document = self._read(text).document
        if document is None:
            return 0.0
        try:
            return float(_validator(self.schema).is_valid(json.loads(document)))
        except (ValueError, RecursionError):  # more digits, or deeper nesting, than Python reads
            return 0.0

    def answer(self, text: str) -> str | None:
        """The document; None if it is not complete."""
        return self._read(text).document

    def _read(self, text: str) -> _Reading:
        data = text.encode("utf-8", "replace")
        matcher = self._empty.deep_copy()
        viable = matcher.try_consume_tokens(list(data))
        complete = matcher.is_accepting()
        # Only a bare number may be complete and go on, and not after a space.
        open_ended = viable == len(data) and not matcher.is_stopped() and not (complete and text[-1:].isspace())
        return _Reading(data[:viable].decode().strip() if complete else None, not open_ended)


class _Reading(NamedTuple):
    """What a text amounts to: its document, None if that is not complete; whether more text would change nothing."""

    document: str | None
    final: bool


class _Bytes:
    """The vocabulary that reads text byte by byte, as llguidance wants it described."""

    eos_token_id = _END
    bos_token_id = None
    special_token_ids = (_END,)
    tokens = (*(bytes([value]) for value in range(_END)), b"<end>")

    def __call__(self, data: bytes) -> list[int]:
        return list(data)


def _matcher() -> LLMatcher:
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
    return LLMatcher(tokenizer, LLMatcher.grammar_from_lark(_JSON), log_level=0)


def _grammar(schema: Mapping[str, Any]) -> Grammar:
    grammar = Grammar(json_schema=schema)
    try:
        check_grammar(grammar, GrammarLimits())
    except GrammarError:
        return Grammar(lark=_JSON)
    return grammar


def _own(schema: object) -> Mapping[str, Any]:
    """A copy of `schema` in plain JSON values, which no one else changes."""
    if not isinstance(schema, Mapping):
        raise InvalidArgument("schema", schema, "must be a JSON object")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument("schema", schema, f"must be a JSON object: {error}") from error
    return copy


def _dialect(schema: Mapping[str, Any]) -> type[Validator]:
    """The validator of the dialect that `schema` names; of draft 2020-12 if it names none."""
    named = schema.get("$schema", _DEFAULT_DIALECT)
    known: type[Validator] | None = None
    if isinstance(named, str):
        known = validator_for({"$schema": named}, default=None)
    if known is None:
        raise InvalidArgument("schema", schema, f"must name a known dialect, but at $.$schema: {named!r}")
    return known


def _validator(schema: Mapping[str, Any]) -> Validator:
    """The validator of a schema that has been checked. It fetches nothing."""
    return _dialect(schema)(schema, registry=REGISTRY)


def _check(schema: Mapping[str, Any]) -> None:
    """Refuse what would else fail only when a document is validated."""
    dialect = _dialect(schema)
    try:
        dialect.check_schema(schema)
        root = specification_with(schema.get("$schema", _DEFAULT_DIALECT)).create_resource(schema)
        parts = [(root, REGISTRY.resolver_with_root(root))]
        for part, resolver in parts:
            for reference in _references(part.contents, dialect):
                _check_target(schema, reference, resolver.lookup, dialect)
            parts.extend((each, resolver.in_subresource(each)) for each in part.subresources())
        _validator(schema).is_valid(None)
    except SchemaError as error:
        raise InvalidArgument("schema", schema, f"must be valid, but at {error.json_path}: {error.message}") from error
    except RecursionError as error:
        raise InvalidArgument("schema", schema, "must not refer to itself without end") from error


def _references(part: object, dialect: type[Validator]) -> Sequence[object]:
    """What a part of a schema refers to itself, not in its own parts."""
    known = dialect.VALIDATORS.keys() & {"$ref", "$dynamicRef"}
    return [part[keyword] for keyword in sorted(known & part.keys())] if isinstance(part, Mapping) else []


def _check_target(
    schema: Mapping[str, Any], reference: object, look_up: Callable[[str], Any], dialect: type[Validator]
) -> None:
    """Refuse a reference that leads nowhere, or to something that is no schema."""
    try:
        if not isinstance(reference, str):
            raise ValueError("not a reference")
        target = look_up(reference).contents
    except (Unresolvable, ValueError) as error:
        raise InvalidArgument("schema", schema, f"must hold what it refers to, but not {reference!r}") from error
    try:
        dialect.check_schema(target)
    except SchemaError as error:
        place = f"at {error.json_path} of {reference!r}"
        raise InvalidArgument("schema", schema, f"must be valid, but {place}: {error.message}") from error

from __future__ import annotations

import json
import pickle
import re
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite import Budget, Engine, run_search
from dendrite.errors import InvalidArgument
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.support import check_grammar
from dendrite.search.task import Split, Task
from dendrite.search.tasks.json_schema import JsonSchema

CITY = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "people": {"type": "integer", "minimum": 0}},
    "required": ["name", "people"],
    "additionalProperties": False,
}
TASK = JsonSchema(CITY, "Describe a city.")
ANY = JsonSchema({}, "Write anything.")
GOOD = '{"name": "Zürich", "people": 443037}'

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
documents = st.builds(
    lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only),
    values,
    st.sampled_from([None, 1]),
    st.booleans(),
)
texts = st.text(alphabet='{}[]",:0123-+.eE\\untrfalse \n', max_size=15) | st.text(max_size=15)


def parses(text: str) -> bool:
    """Whether Python reads `text` as JSON, without the constants that only Python knows."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def test_the_prompt_holds_the_instruction_and_the_schema() -> None:
    before, after = TASK.prompt.split("```json\n", 1)
    assert before.startswith("Describe a city.\n")
    schema, rest = after.split("\n```", 1)
    assert json.loads(schema) == CITY
    assert rest.endswith("```json\n"), "the document goes here"
    assert TASK.name == "json_schema Describe a city."
    assert isinstance(TASK, Task)
    assert not TASK.oracle


def test_the_model_writes_under_the_schema_as_far_as_a_grammar_can_hold_it() -> None:
    assert TASK.grammar.json_schema is not None
    assert json.loads(TASK.grammar.json_schema) == CITY
    other = JsonSchema({"type": "array", "uniqueItems": True}, "Write anything.").grammar
    assert other.json_schema is None
    check_grammar(other, GrammarLimits())


def test_a_search_finds_a_valid_document() -> None:
    task = JsonSchema({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}, "Two or three.")
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=8192) as engine:
        result = run_search(task, engine, algorithm="best_of_n", budget=Budget(tokens=400), seed=1)
    assert result.solved
    assert result.answer is not None
    assert json.loads(result.answer)


def test_a_thought_is_a_line_unless_said_otherwise() -> None:
    assert TASK.split == Split(64, ("\n",))
    other = JsonSchema(CITY, "Describe a city.", split=Split(8, ()), max_depth=5)
    assert (other.split, other.max_depth) == (Split(8, ()), 5)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (GOOD, 1.0),
        ('\n{\n  "people": 1,\n  "name": "A"\n}\n```\nDone.', 1.0),
        ('{"name": "A", "people": 1.0}', 1.0),
        ('{"name": "", "people": 1}', 0.0),
        ('{"name": "A", "people": "1"}', 0.0),
        ('{"name": "A"}', 0.0),
        ('{"name": "A", "people": 1, "mayor": null}', 0.0),
        ("[]", 0.0),
        ("null", 0.0),
        ('{"name": "A", "people": NaN}', 0.0),
        ("{'name': 'A', 'people': 1}", 0.0),
        ("The city is Zürich.", 0.0),
        ("{,", 0.0),
        ('{"name": "a\nb"', 0.0),
        ('{"name": "\\x', 0.0),
        ("}", 0.0),
    ],
)
def test_a_whole_document_or_one_beyond_repair_ends_a_text(text: str, reward: float) -> None:
    assert TASK.is_terminal(text)
    assert TASK.reward(text) == reward


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_no_part_of_a_document_is_terminal(cut: int) -> None:
    assert not TASK.is_terminal(GOOD[:cut])
    assert TASK.reward(GOOD[:cut]) == 0.0
    assert TASK.answer(GOOD[:cut]) is None


@pytest.mark.parametrize(
    ("text", "terminal", "answer"),
    [
        ("12", False, "12"),
        ("12 ", True, "12"),
        ("12\n3", True, "12"),
        ("12x", True, "12"),
        ("12.", False, None),
        ("12.x", True, None),
        ("-", False, None),
        ("-e", True, None),
        ("012", True, "0"),
        ("1e400 ", True, "1e400"),
        ("tru", False, None),
        ("true", True, "true"),
        ("truth", True, None),
        ('"\\ud83d', False, None),
        ('"\\ud83d" ', True, '"\\ud83d"'),
        ('"a"b', True, '"a"'),
        ("\ufeff1", True, None),
        ("\ud800", True, None),
    ],
)
def test_bare_values(text: str, terminal: bool, answer: str | None) -> None:
    assert ANY.is_terminal(text) is terminal
    assert ANY.answer(text) == answer
    assert ANY.reward(text) == float(answer is not None)


def test_a_document_beyond_what_python_reads_earns_nothing() -> None:
    for text in ("[" * 20_000 + "]" * 20_000, "1" * 5_000 + " "):
        assert ANY.is_terminal(text)
        assert ANY.reward(text) == 0.0


@given(documents)
def test_every_document_is_read_to_its_end_and_no_further(document: str) -> None:
    assert ANY.is_terminal(document + "\n")
    assert ANY.answer(document + "\nand more") == document
    assert ANY.reward(document) == 1.0
    for cut in range(len(document)):
        part = document[:cut]
        assert ANY.is_terminal(part) is (parses(part) and part[-1:].isspace()), part


@given(texts)
def test_a_text_is_complete_where_python_reads_it(text: str) -> None:
    if parses(text):
        assert ANY.reward(text) == 1.0
        assert ANY.answer(text) == text.strip()
    elif ANY.is_terminal(text):
        answer = ANY.answer(text)
        assert answer is None or (parses(answer) and text.strip().startswith(answer))


@given(documents | texts, texts)
def test_rewards_are_in_range_and_a_terminal_text_keeps_its_own(text: str, more: str) -> None:
    for task in (TASK, ANY):
        assert task.reward(text) in (0.0, 1.0)
        if task.is_terminal(text):
            assert task.is_terminal(text + more)
            assert task.reward(text + more) == task.reward(text)
            assert task.answer(text + more) == task.answer(text)


def test_the_task_pickles_and_is_a_value() -> None:
    task = JsonSchema(CITY, "Describe a city.", split=Split(8), max_depth=3)
    copy = pickle.loads(pickle.dumps(task))
    assert copy == task
    assert hash(copy) == hash(task)
    assert copy.prompt == task.prompt
    assert copy.reward(GOOD) == 1.0
    assert copy != TASK


def test_the_schema_is_the_tasks_own() -> None:
    schema: dict[str, Any] = {"enum": [1]}
    task = JsonSchema(MappingProxyType(schema), "Count.")
    schema["enum"].append(2)
    assert task.reward("2 ") == 0.0
    assert task.schema == {"enum": [1]}


def test_dialects_and_references_are_followed() -> None:
    old = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "definitions": {"small": {"type": "integer", "maximum": 5, "exclusiveMaximum": True}},
        "items": {"$ref": "#/definitions/small"},
    }
    assert JsonSchema(old, "Count.").reward("[4]") == 1.0
    assert JsonSchema(old, "Count.").reward("[5]") == 0.0
    nested = {
        "$defs": {"x": {"$id": "http://example.org/x", "$defs": {"y": {"const": 1}}, "items": {"$ref": "#/$defs/y"}}},
        "$ref": "http://example.org/x",
    }
    assert JsonSchema(nested, "Count.").reward("[1]") == 1.0
    assert JsonSchema(nested, "Count.").reward("[2]") == 0.0
    tree = {"type": "object", "additionalProperties": {"$ref": "#"}}
    assert JsonSchema(tree, "Grow.").reward('{"a": {"b": {}}}') == 1.0
    assert JsonSchema(tree, "Grow.").reward('{"a": {"b": 1}}') == 0.0
    schema = JsonSchema({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "Write a schema.")
    assert schema.reward('{"type": "string"}') == 1.0
    assert schema.reward('{"type": "text"}') == 0.0
    assert JsonSchema({"properties": {"$ref": {"type": "string"}}}, "Refer.").reward('{"$ref": 1}') == 0.0


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"type": "text"}}}, r"\$\.properties\.a\.type"),
        ({"items": {"pattern": "("}}, r"\$\.items\.pattern"),
        ({"allOf": [{}, {"minimum": "0"}]}, r"\$\.allOf\[1\]\.minimum"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, r"'#/\$defs/b'"),
        ({"$ref": "#nowhere"}, "nowhere"),
        ({"$dynamicRef": "#nowhere"}, "nowhere"),
        ({"items": {"$ref": "http://example.org/x"}}, "http://example.org/x"),
        ({"items": {"$ref": "other.json"}}, "other.json"),
        ({"$ref": "#/title", "title": "x"}, "'x' is not"),
        ({"$ref": "#/odd", "odd": {"type": "text"}}, r"\$\.type of '#/odd'"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "items": {"$ref": 7}}, "7"),
        ({"$ref": "#"}, "without end"),
        ({"$schema": "http://example.org/dialect"}, r"\$\.\$schema"),
        ({"$schema": 7}, r"\$\.\$schema"),
        ({"$ref": "http://["}, r"http://\["),
        ({"const": float("nan")}, "JSON"),
        ({"const": {1, 2}}, "JSON"),
        (True, "object"),
        ("{}", "object"),
        (None, "object"),
    ],
)
def test_an_invalid_schema_is_refused_with_the_place(schema: Any, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("a schema is never fetched")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(InvalidArgument) as caught:
        JsonSchema(schema, "Write.")
    assert caught.value.field == "schema"
    assert re.search(place, caught.value.limit)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"instruction": ""}, "instruction"),
        ({"instruction": " \n"}, "instruction"),
        ({"instruction": None}, "instruction"),
        ({"split": "\n"}, "split"),
        ({"max_depth": 0}, "max_depth"),
        ({"max_depth": True}, "max_depth"),
        ({"max_depth": 2.0}, "max_depth"),
    ],
)
def test_other_bad_arguments_are_refused(arguments: Mapping[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        JsonSchema(**{"schema": {}, "instruction": "Write.", **arguments})
    assert caught.value.field == name

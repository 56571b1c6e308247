"""Answers in JSON, by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.serve_apps.serving import PROMPT, Served

MODEL = "countdown"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Alan"]},
        "born": {"type": "string", "pattern": "^1[89][0-9]{2}$"},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "born", "tags"],
    "additionalProperties": False,
}
BAD = "response_format.json_schema.schema"


def under(schema: object) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        yield client
    served.wait_for_pages(0, 1.0)


def test_every_choice_is_valid_under_the_schema(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "messages": MESSAGES, "response_format": under(SCHEMA), "seed": 4}
    answer = client.chat.completions.create(**options, n=2, max_tokens=400)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
    assert len({choice.message.content for choice in answer.choices}) == 2


def test_a_stream_brings_the_same_document_with_its_logprobs(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "messages": MESSAGES, "response_format": under(SCHEMA), "seed": 4}
    options |= {"max_tokens": 400, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**options).choices[0]
    text, tokens = "", 0
    for chunk in client.chat.completions.create(**options, stream=True):
        text += chunk.choices[0].delta.content or ""
        told = chunk.choices[0].logprobs
        tokens += len(told.content or []) if told is not None else 0
    assert text == whole.message.content
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    assert tokens == len(whole.logprobs.content)
    assert all(token.top_logprobs for token in whole.logprobs.content)


def test_completions_take_it_too_and_stops_may_cut_it(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 200, "seed": 1}
    extra = {"response_format": under({"type": "array", "items": {"const": 7}, "minItems": 3, "maxItems": 3})}
    text = client.completions.create(**options, extra_body=extra).choices[0].text
    assert json.loads(text) == [7, 7, 7]
    cut = client.completions.create(**options, extra_body=extra, stop="7").choices[0].text
    assert cut == text[: text.index("7")]


def test_json_without_a_schema_begins_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=12, seed=1
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")
    plain = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "seed": 1}
    free = client.chat.completions.create(**plain, response_format={"type": "text"})
    assert free.choices[0].message.content == client.chat.completions.create(**plain).choices[0].message.content


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (under({"type": "array", "uniqueItems": True}), BAD),
        (under({"$ref": "https://example.com/schema"}), BAD),
        (under({"enum": list(range(2_000))}), BAD),
        (under({"type": "string", "pattern": "(" * 50}), BAD),
        (under({"type": "integer", "minimum": 2, "maximum": 1}), BAD),
        (under({"description": "x" * 100_000}), BAD),
        (under("string"), BAD),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "text", "json_schema": {"name": "x", "schema": {}}}, "response_format.json_schema"),
        ({"type": "yaml"}, "response_format.type"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_refused_by_name(
    client: openai.OpenAI, wanted: Any, field: str, *, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=wanted, stream=stream)
    assert caught.value.param == field
    assert field in caught.value.message


def test_deep_schemas_are_refused(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {}
    for _ in range(40):
        schema = {"type": "object", "properties": {"x": schema}}
    with pytest.raises(openai.BadRequestError, match="deep"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=under(schema))


def test_a_search_keeps_to_a_schema(served: Served) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}
    task = {"kind": "json_schema", "schema": schema, "instruction": "Two numbers."}
    body = {"task": task, "algorithm": "best_of_n", "options": {"n": 2}, "seed": 2, "budget": {"tokens": 2_000}}
    with served.client() as http:
        view = http.post("/v1/search", json=body).json()
    assert view.get("status") == "finished", view
    assert view["result"]["solved"]
    jsonschema.validate(json.loads(view["result"]["answer"]), schema)

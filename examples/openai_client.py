"""OpenAI's own client against a Dendrite server: choices that share a prompt, a stream, JSON, and a search as a model.

Run it with `python examples/openai_client.py [--url http://127.0.0.1:8000]`. It needs `pip install openai`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from serving import parse_url, server

try:
    import openai
except ImportError:
    raise SystemExit("this example needs OpenAI's client: pip install openai") from None

PROBLEM = "Numbers: 3 7 8 25. Target: 92."
MESSAGES: Any = [{"role": "user", "content": PROBLEM}]
SCHEMA = {
    "type": "object",
    "properties": {
        "operation": {"enum": ["add", "subtract"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["operation", "number"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # this model would fill its tokens with white space
}


def choices(client: openai.OpenAI) -> list[str]:
    """Eight first lines of one prompt, which the server prefills once."""
    answer = client.completions.create(model="countdown", prompt=f"{PROBLEM}\n", max_tokens=32, n=8, stop="\n", seed=1)
    return [choice.text for choice in answer.choices]


def stream(client: openai.OpenAI) -> str:
    """A chat completion, printed as it comes."""
    text = ""
    for chunk in client.chat.completions.create(model="countdown", messages=MESSAGES, max_tokens=96, stream=True):
        piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
        print(piece, end="", flush=True)
        text += piece
    return text


def document(client: openai.OpenAI) -> dict[str, Any]:
    """A text that is valid under a schema, though this small model has never seen JSON."""
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "step", "strict": True, "schema": SCHEMA}}
    answer = client.chat.completions.create(model="countdown", messages=MESSAGES, max_tokens=96, response_format=wanted)
    found: dict[str, Any] = json.loads(answer.choices[0].message.content or "")
    return found


def search(client: openai.OpenAI) -> str | None:
    """The answer of a tree search, which the server offers as one more model; `max_tokens` is its budget."""
    answer = client.chat.completions.create(model="countdown:mcts", messages=MESSAGES, max_tokens=4_096, seed=0)
    return answer.choices[0].message.content


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Ask for each, and return what came."""
    url = parse_url("Use OpenAI's client with a Dendrite server.", args)
    with server(url) as base, openai.OpenAI(base_url=f"{base}/v1", api_key="not asked for") as client:
        print("models:", ", ".join(model.id for model in client.models.list())[:60], "…")
        found: dict[str, Any] = {"choices": choices(client)}
        print("eight choices of one prompt:", *found["choices"], sep="\n  ")
        print("a stream:")
        found["stream"] = stream(client)
        found |= {"document": document(client), "search": search(client)}
        print(f"JSON by a schema: {found['document']}")
        print(f"a search:\n{found['search']}")
    return found


if __name__ == "__main__":
    main()

"""What the grammar benchmark works on: a tokenizer trained here, a schema, and documents that are valid under it."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 32_000
EOS = "<|end|>"
_CORPUS_BYTES = 12_000_000

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0},
        "title": {"type": "string"},
        "kind": {"enum": ["article", "review", "note", "question"]},
        "price": {"type": "number"},
        "published": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "author": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "email": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(com|org)$"},
                "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
            "required": ["name", "email", "age"],
            "additionalProperties": False,
        },
        "ratings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"by": {"type": "string"}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
                "required": ["by", "stars"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["id", "title", "kind", "price", "published", "tags", "author", "ratings"],
    "additionalProperties": False,
}
"""Eight fields, two of them nested."""

_WORDS = [
    "tree",
    "search",
    "model",
    "token",
    "branch",
    "value",
    "prior",
    "page",
    "engine",
    "schema",
    "river",
    "stone",
    "light",
    "north",
    "seven",
    "quiet",
]


def train_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE of that many tokens, trained on the sources of Python's standard library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def documents(count: int, seed: int = 0) -> list[str]:
    """Documents that are valid under `SCHEMA`, without white space."""
    noise = Random(seed)
    return [json.dumps(_record(noise), separators=(",", ":")) for _ in range(count)]


def _corpus() -> Iterator[str]:
    left = _CORPUS_BYTES
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if left <= 0:
            return
        if "site-packages" not in path.parts:
            text = path.read_text("utf-8", "replace")
            left -= len(text)
            yield text


def _record(noise: Random) -> dict[str, Any]:
    def words(count: int) -> str:
        return " ".join(noise.choice(_WORDS) for _ in range(count))

    return {
        "id": noise.randrange(100_000),
        "title": words(6),
        "kind": noise.choice(["article", "review", "note", "question"]),
        "price": noise.randrange(10_000) / 100,
        "published": noise.random() < 0.5,
        "tags": [words(1) for _ in range(noise.randrange(4))],
        "author": {
            "name": words(2).title(),
            "email": f"{words(1)}@{words(1)}.{noise.choice(['com', 'org'])}",
            "age": noise.choice([None, noise.randrange(20, 80)]),
        },
        "ratings": [{"by": words(1), "stars": noise.randrange(1, 6)} for _ in range(noise.randrange(1, 4))],
    }

"""The grammar benchmark's parts on a small vocabulary: its documents, its times, and its rates."""

from __future__ import annotations

import json
from importlib.util import find_spec

import jsonschema
import pytest
import torch

from benchmarks import grammar
from benchmarks.grammar_corpus import EOS, SCHEMA, documents
from benchmarks.grammar_times import XGrammar, batch_times, compiled_for, step_times, summary
from dendrite.grammar.compiler import GrammarCompiler, wrapped
from dendrite.model.folder import resolve
from dendrite.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(resolve("countdown"))


def test_documents_are_valid_and_differ() -> None:
    made = documents(20)
    assert len(set(made)) == 20
    assert made == documents(20)
    for text in made:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(SCHEMA["properties"]) == 8
    assert EOS not in "".join(made)


def test_times_are_of_every_token(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(wrapped(tokenizer, 264))
    compiled = compiled_for(compiler, SCHEMA)
    paths = [tokenizer.encode(text) for text in documents(2)]
    times = step_times(compiled, compiler.words, paths)
    assert {len(values) for values in times.values()} == {sum(map(len, paths))}
    figures = summary("grammar", times)
    assert 0 < figures["grammar.mask_p50_us"] <= figures["grammar.mask_p99_us"]
    assert len(batch_times(compiled, compiler.words, paths, 1)) == min(map(len, paths)) - 1


@pytest.mark.skipif(find_spec("xgrammar") is None, reason="xgrammar is not installed")
def test_xgrammar_follows_the_same_tokens(tokenizer: Tokenizer) -> None:
    paths = [tokenizer.encode(text) for text in documents(2)]
    times = XGrammar(tokenizer.backend, 264, SCHEMA).step_times(paths)
    assert len(times["mask"]) == sum(map(len, paths))


def test_constrained_and_free_generation_make_the_same_number_of_tokens(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "VOCABULARY", 264)
    monkeypatch.setattr(grammar, "BATCHES", (2,))
    metrics, raw = grammar.engine_figures(tokenizer, "tiny", torch.device("cpu"), runs=1, tokens=8)
    assert metrics["grammar.b2.relative_tok_s"] == pytest.approx(
        metrics["grammar.b2.constrained_tok_s"] / metrics["grammar.b2.free_tok_s"]
    )
    assert raw["engine"]["decode_tokens"] + raw["engine"]["forced_tokens"] == 2 * 2 * 2 * 8

from __future__ import annotations

import pytest

from dendrite.errors import GrammarError, InvalidArgument
from dendrite.grammar import Grammar
from dendrite.grammar.compiler import GrammarCompiler, bits_of, wrapped
from dendrite.model.folder import resolve
from dendrite.model.tokenizer import Tokenizer
from tests.dendrite.grammar.byte_tokens import EOS, VOCABULARY, byte_tokenizer


def test_the_same_grammar_is_compiled_once() -> None:
    compiler = GrammarCompiler(byte_tokenizer())
    first = compiler.compile(Grammar(json_schema={"type": "integer"}))
    assert compiler.compile(Grammar(json_schema='{ "type" : "integer" }')) is first
    assert compiler.compile(Grammar(json_schema={"type": "integer"}, white_space=False)) is not first


def test_those_used_last_are_kept() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), capacity=2)
    a, b, c = (Grammar(regex=text) for text in "abc")
    first = compiler.compile(a)
    second = compiler.compile(b)
    assert compiler.compile(a) is first
    compiler.compile(c)
    assert len(compiler) == 2
    assert compiler.compile(a) is first
    assert compiler.compile(b) is not second


def test_a_grammar_that_fails_is_not_kept() -> None:
    compiler = GrammarCompiler(byte_tokenizer())
    for _ in range(2):
        with pytest.raises(GrammarError, match="uniqueItems"):
            compiler.compile(Grammar(json_schema={"uniqueItems": True}))
    assert len(compiler) == 0


def test_documents_are_spread_over_families() -> None:
    compiled = GrammarCompiler(byte_tokenizer(), families=3).compile(Grammar(regex="[ab]+"))
    assert sorted(compiled.fresh()[1] for _ in range(6)) == [0, 0, 1, 1, 2, 2]


def test_bits_are_packed_lowest_first() -> None:
    assert bits_of([0, 33, 63], 70).tolist() == [1, 2 - 2**31, 0]
    compiled = GrammarCompiler(byte_tokenizer()).compile(Grammar(regex="a"))
    assert compiled.closed.tolist() == bits_of([EOS], VOCABULARY).tolist()
    assert compiled.eos_ids == {EOS}


def test_the_packaged_tokenizer_is_wrapped_for_its_models_vocabulary() -> None:
    inner = wrapped(Tokenizer.from_folder(resolve("countdown")), 264)
    assert inner.vocab_size == 264
    assert inner.eos_tokens == [256]


def test_a_model_without_a_tokenizer_or_an_end_has_no_grammars() -> None:
    with pytest.raises(InvalidArgument, match="tokenizer"):
        wrapped(Tokenizer(None, frozenset([1]), "nowhere"), 264)
    backend = Tokenizer.from_folder(resolve("countdown")).backend
    with pytest.raises(InvalidArgument, match="end-of-sequence"):
        wrapped(Tokenizer(backend, frozenset(), "nowhere"), 264)

"""A tokenizer with a token for each byte and a few longer ones, small enough to look at its masks."""

from __future__ import annotations

from llguidance import LLTokenizer, TokenizerWrapper

from dendrite.grammar import Grammar
from dendrite.grammar.compiler import CompiledGrammar, GrammarCompiler
from dendrite.grammar.limits import GrammarLimits

WORDS = ('{"', '":', '", "', "true", "false", "null", "ab", "abc", "00", "  ")
EOS = 256 + len(WORDS)
VOCABULARY = EOS + 1


class Bytes:
    """The vocabulary as llguidance wants it described."""

    eos_token_id = EOS
    bos_token_id = None
    special_token_ids = (EOS,)
    tokens = (*(bytes([value]) for value in range(256)), *(word.encode() for word in WORDS), b"<end>")

    def __call__(self, data: bytes) -> list[int]:
        return list(data)


def compiled(limits: GrammarLimits | None = None, **grammar: object) -> CompiledGrammar:
    """A grammar for the tokenizer."""
    return GrammarCompiler(byte_tokenizer(), limits=limits).compile(Grammar(**grammar))


def byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(Bytes()), slices=[])

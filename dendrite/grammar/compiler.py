"""Grammars made ready for one tokenizer, and the cache of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from dendrite.errors import GrammarError, InvalidArgument
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.spec import Grammar
from dendrite.grammar.support import check_grammar, parser_limits, translated
from dendrite.model.tokenizer import Tokenizer

Bits = npt.NDArray[np.int32]
"""[ceil(V / 32)] int32: bit `t % 32` of word `t // 32` tells whether token t may come."""


class CompiledGrammar:
    """A grammar that matchers can be made of.

    Matchers copied from one another share a lexer, which only one thread can use at a time. So there are several
    *families*, each with a lexer of its own; documents are spread over them as they begin.
    """

    def __init__(
        self, grammar: Grammar, tokenizer: LLTokenizer, limits: GrammarLimits, families: int, turn: int
    ) -> None:
        """Compile; see `GrammarCompiler`. The first document is of family `turn`, modulo their number."""
        self.grammar = grammar
        self.digest = grammar.digest
        self.place = "$" if grammar.kind == "json_schema" else grammar.kind
        self.eos_ids = frozenset(tokenizer.eos_tokens)
        self.closed = bits_of(self.eos_ids, tokenizer.vocab_size)
        self._tokenizer, self._limits = tokenizer, limits
        self._text = translated(grammar)
        self._families, self._turn = families, turn
        self._first: dict[int, LLMatcher] = {}
        self.fresh()

    def fresh(self) -> tuple[LLMatcher, int]:
        """A matcher before its first token, and the number of its family."""
        family = self._turn % self._families
        self._turn += 1
        if family not in self._first:
            self.renew(family)
        return self._first[family].deep_copy(), family

    def renew(self, family: int) -> LLMatcher:
        """A matcher before its first token with a new lexer, which documents to come of the family share."""
        made = LLMatcher(self._tokenizer, self._text, log_level=0, limits=parser_limits(self._limits))
        if made.is_error():
            raise GrammarError(self.place, first_line(made.get_error()))
        self._first[family] = made
        return made.deep_copy()


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps those used last."""

    def __init__(
        self,
        tokenizer: LLTokenizer,
        *,
        limits: GrammarLimits | None = None,
        capacity: int = 64,
        families: int = 1,
    ) -> None:
        """Compile for `tokenizer`.

        Args:
            tokenizer: see `wrapped`.
            limits: how large a grammar, and its steps, may be.
            capacity: grammars that are kept.
            families: lexers that a grammar has, at most: as many as there are threads for masks.
        """
        self._tokenizer = tokenizer
        self._limits = limits or GrammarLimits()
        self._capacity = capacity
        self._families = families
        self._compiled = 0
        self._kept: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def __len__(self) -> int:
        """Grammars that are kept."""
        return len(self._kept)

    @property
    def words(self) -> int:
        """Words in a row of bits."""
        return -(-self._tokenizer.vocab_size // 32)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The compiled form: kept, or made now, which takes milliseconds, and up to a second for a huge schema.

        Raises:
            GrammarError: it can't be followed; names the part and the reason.
        """
        found = self._kept.get(grammar.digest)
        if found is None:
            check_grammar(grammar, self._limits)
            found = CompiledGrammar(grammar, self._tokenizer, self._limits, self._families, self._compiled)
            self._compiled += 1
            self._kept[grammar.digest] = found
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar.digest)
        return found


def wrapped(tokenizer: Tokenizer, vocabulary: int) -> LLTokenizer:
    """A model's tokenizer as llguidance takes it, for logits of `vocabulary` tokens. Takes up to a second.

    Raises:
        InvalidArgument: it has no end-of-sequence token, or is not one of the fast ones.
    """
    # Deferred: it imports transformers, which takes seconds.
    from llguidance.hf import from_tokenizer

    if not tokenizer.available or not tokenizer.eos_ids:
        raise InvalidArgument("grammar", None, "needs a model with a tokenizer and an end-of-sequence token")
    try:
        return from_tokenizer(tokenizer.backend, n_vocab=vocabulary, eos_token=sorted(tokenizer.eos_ids))
    except ValueError as error:
        raise InvalidArgument("grammar", None, f"cannot use the model's tokenizer: {error}") from error


def bits_of(tokens: Iterable[int], vocabulary: int) -> Bits:
    """Packed bits with those of `tokens` set."""
    flags = np.zeros(-(-vocabulary // 32) * 32, dtype=np.uint8)
    flags[list(tokens)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)


def first_line(message: str) -> str:
    """What an error of llguidance says, without the state that it dumps after it."""
    return message.strip().split("\n", 1)[0]

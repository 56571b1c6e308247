"""What a client knows of the documents on its paths."""

from __future__ import annotations

from actors.documents import Document, extended, placed
from dendrite.config import SamplingParams
from dendrite.grammar import Grammar

DIGITS, LETTERS = Grammar(regex="[0-9]+"), Grammar(regex="[a-z]+")


def test_a_document_goes_on_under_its_own_grammar_only() -> None:
    params = SamplingParams(grammar=DIGITS)
    document = Document(DIGITS.digest, 7)
    assert placed(params, document).grammar_tokens == 7
    assert placed(params, Document(LETTERS.digest, 7)).grammar_tokens == 0
    assert placed(params, None).grammar_tokens == 0


def test_what_a_caller_says_stays() -> None:
    params = SamplingParams(grammar=DIGITS, grammar_tokens=3)
    assert placed(params, Document(DIGITS.digest, 7)) is params
    free = SamplingParams()
    assert placed(free, Document(DIGITS.digest, 7)) is free


def test_a_node_ends_in_the_document_that_it_was_generated_under() -> None:
    params = placed(SamplingParams(grammar=DIGITS), Document(DIGITS.digest, 7))
    assert extended(params, 5) == Document(DIGITS.digest, 12)
    assert extended(SamplingParams(), 5) is None
    assert extended(None, 5) is None, "tokens that were given"

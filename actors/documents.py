"""How much of a path belongs to a document under a grammar, known without the worker that wrote it.

A copy of a node is made of tokens and KV alone. So whoever asks for more of a document says where it has begun.
"""

from __future__ import annotations

from dataclasses import dataclass

from dendrite.config import SamplingParams


@dataclass(frozen=True, slots=True)
class Document:
    """The last `tokens` tokens of a path, all generated under one grammar, of this digest."""

    grammar: str
    tokens: int


def placed(params: SamplingParams, document: Document | None) -> SamplingParams:
    """Settings that say how many tokens at the end of the path belong to their grammar's document, if they have one.

    Args:
        params: for what comes next. What they say themselves stays.
        document: at the end of the path; None where its last token was generated under no grammar.
    """
    if params.grammar is None or params.grammar_tokens is not None:
        return params
    written = 0
    if document is not None and document.grammar == params.grammar.digest:
        written = document.tokens
    return params.model_copy(update={"grammar_tokens": written})


def extended(params: SamplingParams | None, made: int) -> Document | None:
    """The document at the end of a node of `made` tokens, given the settings that `placed` has returned for them.

    `params` is None where nothing was generated: tokens that were given belong to no document.
    """
    if params is None or params.grammar is None or params.grammar_tokens is None:
        return None
    return Document(params.grammar.digest, params.grammar_tokens + made)

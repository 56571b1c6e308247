"""Finding where a node stands in a grammar: taken over from its ancestors, or built again from its tokens."""

from __future__ import annotations

from dendrite.errors import GrammarError, InvalidArgument
from dendrite.grammar.compiler import CompiledGrammar
from dendrite.grammar.matcher import Matcher
from dendrite.kv.node import Node


def place(node: Node, compiled: CompiledGrammar, tokens: int | None) -> Matcher:
    """The matcher of what `node` generates next.

    A document goes on where the path so far was generated under the same grammar, up to its last token; otherwise it
    begins at the node. With `tokens`, it is the last that many on the path that belong to it, whoever wrote them and
    wherever: grammar and tokens are all that a node needs to go on elsewhere.

    Args:
        node: whose end is meant.
        compiled: the grammar.
        tokens: how many tokens of the document are on the path already, if that is known.

    Raises:
        InvalidArgument: the path is shorter than `tokens`.
        GrammarError: those tokens are not the beginning of a document.
    """
    length = node.length
    if tokens is not None and tokens > length:
        raise InvalidArgument("grammar_tokens", tokens, f"at most the {length} tokens on the path")
    found = _nearest(node, compiled, None if tokens is None else length - tokens)
    if found is not None:
        return found
    matcher = Matcher(compiled, length - (tokens or 0))
    _replay(matcher, node)
    return matcher


def _nearest(node: Node, compiled: CompiledGrammar, start: int | None) -> Matcher | None:
    """A fork of what the nearest ancestor knows of the same document, moved to the end of `node`; None if it can't."""
    at: Node | None = node
    limit = node.length
    while at is not None and at.grammar is None and limit > 0:
        if start is None and (at.base < limit or at.parent is None or at.parent.tree is not at.tree):
            return None  # what comes next belongs to no document
        limit, at = min(limit, at.base), at.parent
    known = at.grammar if at is not None else None
    if known is None or known.compiled.digest != compiled.digest or known.start > limit or known.failed:
        return None
    if known.end < node.length if start is None else known.start != start:
        return None
    matcher = known.fork()
    if not matcher.rollback(max(0, matcher.end - limit)):
        return _rebuilt(matcher, node)
    _replay(matcher, node)
    return matcher


def _rebuilt(matcher: Matcher, node: Node) -> Matcher:
    fresh = Matcher(matcher.compiled, matcher.start)
    _replay(fresh, node)
    return fresh


def _replay(matcher: Matcher, node: Node) -> None:
    if matcher.end == node.length:
        return
    tokens = node.path_tokens[matcher.end :]
    try:
        matcher.take(tokens)
    except GrammarError as error:
        raise GrammarError(error.path, f"the tokens on the path are not of the grammar: {error.reason}") from error

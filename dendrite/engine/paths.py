"""Questions about the path from a node up to its root."""

from __future__ import annotations

from collections.abc import Iterator

from dendrite.errors import ContextOverflow
from dendrite.kv.node import Node


def find_tip(node: Node) -> int:
    """Slot of the hidden state at the end of `node`, its own or that of the ancestor it was forked from; -1 if none."""
    length = node.length
    at: Node | None = node
    while at is not None and at.length == length:
        if at.tip >= 0:
            return at.tip
        if at.tokens:
            return -1
        at = at.parent
    return -1


def token_owner(node: Node) -> Node:
    """The node whose own segment holds the last token of the path of `node`."""
    length, at = node.length, node
    while at.base >= length and at.parent is not None:
        at = at.parent
    return at


def ancestors(node: Node) -> Iterator[Node]:
    """All nodes above `node`, the nearest first; a cached prefix's in other trees too."""
    above = node.parent
    while above is not None:
        yield above
        above = above.parent


def check_context(node: Node, longest: int) -> None:
    """Refuse a node that leaves no room for one more token.

    Raises:
        ContextOverflow: the path and one more token exceed `longest`.
    """
    if node.length + 1 > longest:
        raise ContextOverflow(node.length + 1, longest)


def generated_on_path(node: Node) -> list[int]:
    """The sampled (not given) tokens on the path of `node`, latest segment first."""
    found: list[int] = []
    end, at = node.length, node
    while True:
        own = at.tokens[: end - at.base]
        given = len(at.tokens) - len(at.logprobs)
        found.extend(own[given:])
        if at.parent is None:
            return found
        end, at = min(end, at.base), at.parent


def logprobs_on_path(node: Node, start: int, end: int) -> list[float]:
    """Log-probabilities of tokens `start` .. `end` - 1 on the path of `node`: of as many of the last as were sampled.

    The list ends before the first token, seen from `end`, that was given.
    """
    found: list[float] = []
    at: Node | None = node
    while at is not None and end - len(found) > start:
        own = max(0, end - len(found) - at.base)
        given = len(at.tokens) - len(at.logprobs)
        sampled = at.logprobs[: max(0, own - given)]
        found.extend(reversed(sampled))
        if len(sampled) < own:
            break
        at = at.parent
    return found[: end - start][::-1]

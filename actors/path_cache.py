"""Keys and values of the paths that a reward model has scored, in a radix tree: a shared prefix is kept once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""A layer's keys and values each: (heads, tokens, width of a head)."""


@dataclass(slots=True, eq=False)
class Computed:
    """What the model made of a span's tokens. `logits` are (tokens, labels): the head's, had the text ended there."""

    keys_values: KeysValues
    logits: torch.Tensor

    def cut(self, start: int, stop: int) -> Computed:
        """A copy of the part from token `start` up to `stop`: the rest does not stay for its sake."""
        kept = [(keys[:, start:stop].clone(), values[:, start:stop].clone()) for keys, values in self.keys_values]
        return Computed(kept, self.logits[start:stop].clone())


@dataclass(slots=True, eq=False)
class Span:
    """Tokens that follow those of `parent`; `computed` is None until the model has run them."""

    parent: Span | None
    tokens: tuple[int, ...]
    computed: Computed | None = None
    children: dict[int, Span] = field(default_factory=dict)
    """By their first token."""

    @property
    def path(self) -> list[Span]:
        """The spans from the start of the text to this one's end."""
        found: list[Span] = []
        span: Span | None = self
        while span is not None and span.parent is not None:
            found.append(span)
            span = span.parent
        return found[::-1]


class PathCache:
    """Spans by the token paths that they lie on; the ones that were used longest ago go first.

    A span is never changed but by being cut in two where another path branches off, so that what one path adds can't
    reach another's.
    """

    def __init__(self, limit: int) -> None:
        """Make an empty cache of at most `limit` tokens between two calls of `trim`."""
        self.limit = limit
        self.tokens = 0
        """Tokens of all spans."""
        self._root = Span(None, ())
        # A span comes after all below it, as `_touch` goes from the end of a path to its start: the first is a leaf.
        self._order: dict[Span, None] = {}

    def __iter__(self) -> Iterator[Span]:
        return iter(self._order)

    def add(self, tokens: tuple[int, ...]) -> Span:
        """The span that ends where `tokens` end, made if need be; `tokens` are not empty.

        Later calls may cut it in two: it is then the part that ends there.
        """
        span, at = self._root, 0
        while at < len(tokens):
            following = span.children.get(tokens[at])
            if following is None:
                following = Span(span, tokens[at:])
                span.children[tokens[at]] = following
                self.tokens += len(following.tokens)
            else:
                shared = _shared(following.tokens, tokens[at:])
                if shared < len(following.tokens):
                    following = _cut(following, shared)
            span, at = following, at + len(following.tokens)
        self._touch(span)
        return span

    def _touch(self, end: Span) -> None:
        for span in reversed(end.path):
            self._order.pop(span, None)
            self._order[span] = None

    def trim(self) -> None:
        """Give up spans until the limit holds. Those that `add` has returned are not to be used after that."""
        while self.tokens > self.limit:
            span = next(iter(self._order))
            del self._order[span]
            assert span.parent is not None
            del span.parent.children[span.tokens[0]]
            self.tokens -= len(span.tokens)

    def clear(self) -> None:
        """Give up all."""
        self._root, self.tokens = Span(None, ()), 0
        self._order.clear()


def _shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the longest common prefix."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))


def _cut(span: Span, at: int) -> Span:
    """Cut a span before its token `at`. Returns the new upper part; `span` itself becomes the lower."""
    assert span.parent is not None
    upper = Span(span.parent, span.tokens[:at], children={span.tokens[at]: span})
    if span.computed is not None:
        upper.computed = span.computed.cut(0, at)
        span.computed = span.computed.cut(at, len(span.tokens))
    span.parent.children[upper.tokens[0]] = upper
    span.parent, span.tokens = upper, span.tokens[at:]
    return upper

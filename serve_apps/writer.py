"""The tokens of one choice as items of text, cut at the stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from dendrite.search.backend import Branch
from serve_apps.stops import Item, StopCutter, Token
from serve_apps.text import TextCodec


class TextWriter:
    """Takes spans in, gives items out. `generated` counts tokens; `finish_reason` is right once the text has ended."""

    def __init__(self, codec: TextCodec, stops: Sequence[str], *, by_token: bool) -> None:
        """Begin a text.

        Args:
            codec: of the model.
            stops: texts to end before.
            by_token: make each token an item of its own; otherwise a span is one, which costs less.
        """
        self._stream, self._cutter, self._by_token = codec.stream(), StopCutter(stops), by_token
        self.generated = 0
        self.finish_reason: Literal["stop", "length"] = "length"

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come, so that what follows is of no use."""
        return self._cutter.stopped

    def take(self, branch: Branch) -> list[Item]:
        """The items that a span completes."""
        self.generated += len(branch.tokens)
        if branch.finish_reason == "stop":
            self.finish_reason = "stop"
        tokens = tokens_of(branch)
        if self._by_token:
            return self._pushed(Item(self._stream.push(token.id), (token,)) for token in tokens)
        return self._pushed([Item(self._stream.extend(branch.tokens), tokens)])

    def end(self) -> list[Item]:
        """What was held back, for characters or stops that have not been completed."""
        rest = self._stream.flush()
        items = self._pushed([Item(rest)] if rest else [])
        return items + self._cutter.flush()

    def _pushed(self, items: Iterable[Item]) -> list[Item]:
        passed = [each for item in items for each in self._cutter.push(item)]
        if self._cutter.stopped:
            self.finish_reason = "stop"
        return passed


def tokens_of(branch: Branch) -> tuple[Token, ...]:
    """A branch's tokens, each with what is known of it."""
    tops = branch.top_logprobs or ((),) * len(branch.tokens)
    return tuple(map(Token, branch.tokens, branch.logprobs, tops))

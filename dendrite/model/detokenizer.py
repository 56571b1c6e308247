"""Text of a growing token sequence, one token at a time: for streaming and for finding stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
_CONTEXT = 6
_MAX_HELD = 4
"""A character has at most 4 bytes, so what is not whole after as many tokens never will be."""
Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns tokens into text as they come, holding back bytes of a character that is not complete yet.

    A tokenizer's text depends on neighbouring tokens (leading spaces, characters split over tokens), so each
    step decodes a short window twice, with and without the new token, and what is new is the difference. The
    window moves on whenever it ends on a whole character: the cost per token does not grow with the text.
    """

    __slots__ = ("_decode", "_held", "_written")

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        """Start after `context`.

        Args:
            decode: text of token ids, such as `Tokenizer.decode`.
            context: the tokens before the first that will be pushed; only the last few are kept.
        """
        self._decode = decode
        self._written = list(context[-_CONTEXT:])
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes: empty inside a character, else often one token's."""
        self._held.append(token)
        text, whole = self._new_text()
        if not whole and len(self._held) < _MAX_HELD:
            return ""
        self._written, self._held = self._held, []
        return text

    def extend(self, tokens: Sequence[int]) -> str:
        """The text that several tokens complete: what as many calls of `push` would give, for the cost of one."""
        self._held += tokens
        text, whole = self._new_text()
        if whole or not self._held:
            self._written, self._held = (self._written + self._held)[-_CONTEXT:], []
            return text
        held, self._held = self._held, []
        return "".join(self.push(token) for token in held)

    def flush(self) -> str:
        """Text held back so far, incomplete characters as U+FFFD; to be called when no token will follow."""
        if not self._held:
            return ""
        text, _ = self._new_text()
        self._written, self._held = self._held, []
        return text

    def fork(self) -> Detokenizer:
        """An independent copy that continues from here."""
        copy = Detokenizer(self._decode)
        copy._written, copy._held = list(self._written), list(self._held)
        return copy

    def _new_text(self) -> tuple[str, bool]:
        """Text of the held tokens after the written ones, and whether it ends on a whole character."""
        before = self._decode(self._written)
        after = self._decode(self._written + self._held)
        return after[len(before) :], len(after) > len(before) and not after.endswith(_INCOMPLETE)

"""A text as windows that a model of limited context can score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dendrite.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are run together; those from `first` on (at least 1) are scored, the ones before are context."""

    tokens: tuple[int, ...]
    first: int

    def __post_init__(self) -> None:
        if not 1 <= self.first < len(self.tokens):
            raise InvalidArgument(
                "first", self.first, f"must be 1 to {len(self.tokens) - 1}: a token needs another before"
            )


def sliding_windows(tokens: Sequence[int], window: int, stride: int, bos: int | None = None) -> list[Window]:
    """Windows over a text so that every token is scored once, behind at least `window` - `stride` others if there are.

    Without `bos` the first token of the text is context only; where `stride` is `window`, so is that of each window.

    Args:
        tokens: of the text.
        window: tokens of a window, `bos` not counted; at least 2.
        stride: tokens from one window's end to the next, 1 to `window`.
        bos: a token to put before each window.

    Raises:
        InvalidArgument: a size is out of range, or the text has nothing to score.
    """
    if window < 2:
        raise InvalidArgument("window", window, "must be at least 2 tokens")
    if not 1 <= stride <= window:
        raise InvalidArgument("stride", stride, f"must be 1 to window={window}")
    lead = () if bos is None else (bos,)
    windows: list[Window] = []
    scored, end = 0, 0
    while scored < len(tokens):
        end = min(window, len(tokens)) if end == 0 else min(end + stride, len(tokens))
        begin = max(0, end - window)
        first = max(1, scored - begin + len(lead))
        if first < end - begin + len(lead):
            windows.append(Window((*lead, *tokens[begin:end]), first))
        scored = end
    if not windows:
        raise InvalidArgument("tokens", len(tokens), "must be at least 2, or 1 behind a bos")
    return windows

"""Where a path stands in a grammar: shared by forks, copied when one of them moves on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from llguidance import LLMatcher

from dendrite.errors import GrammarError
from dendrite.grammar.compiler import Bits, CompiledGrammar, first_line


class State:
    """One state of an llguidance matcher, the `owners` that stand in it, and the mask of what may follow.

    While `pending` is not done a thread works on the matcher; `settle` waits for it.
    """

    __slots__ = ("bits", "family", "inner", "owners", "pending")

    def __init__(self, inner: LLMatcher, family: int) -> None:
        self.inner = inner
        self.family = family
        self.owners = 1
        self.bits: Bits | None = None
        self.pending: Future[None] | None = None

    def settle(self) -> LLMatcher:
        """The matcher, when no thread works on it any more."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None
        return self.inner


class Matcher:
    """How far one path has come in a document.

    Attributes:
        compiled: the grammar.
        start: tokens on the path before the document.
        taken: tokens of the document so far.
        closed: whether an end-of-sequence token was among them, the last one.
        state: what it shares with its forks until it moves.
    """

    __slots__ = ("closed", "compiled", "start", "state", "taken")

    def __init__(self, compiled: CompiledGrammar, start: int) -> None:
        """Stand before the first token of a document that begins after `start` tokens of the path."""
        self.compiled = compiled
        self.start = start
        self.taken = 0
        self.closed = False
        self.state = State(*compiled.fresh())

    def __del__(self) -> None:
        """Leave the state to its other owners; the last of them need not copy it."""
        if hasattr(self, "state"):
            self.state.owners -= 1

    @property
    def end(self) -> int:
        """Tokens on the path up to where the matcher stands."""
        return self.start + self.taken

    @property
    def accepting(self) -> bool:
        """Whether the document may end here."""
        return self.closed or self.state.settle().is_accepting()

    @property
    def finished(self) -> bool:
        """Whether nothing can follow but the end of the sequence."""
        return self.closed or self.state.settle().is_stopped()

    @property
    def failed(self) -> bool:
        """Whether a limit was passed, here or by another path with the same lexer."""
        return self.state.settle().is_error()

    @property
    def bits(self) -> Bits:
        """Which tokens may follow, as computed by `MaskPool`.

        Raises:
            GrammarError: a limit was passed.
        """
        if self.closed:
            return self.compiled.closed
        inner = self.state.settle()
        if inner.is_error():
            raise self._failed(inner)
        assert self.state.bits is not None, "asked for before MaskPool.request"
        return self.state.bits

    def fork(self) -> Matcher:
        """Another path that stands here. Copies nothing yet."""
        twin = Matcher.__new__(Matcher)
        twin.compiled, twin.start, twin.taken, twin.closed = self.compiled, self.start, self.taken, self.closed
        twin.state = self.state
        self.state.owners += 1
        return twin

    def advance(self, token: int) -> None:
        """Move over one token.

        Raises:
            GrammarError: it does not fit here, or a limit was passed; the matcher is of no use then.
        """
        if token in self.compiled.eos_ids or self.closed:
            if self.closed or not self.accepting:
                raise GrammarError(self.compiled.place, f"token {token} does not fit after {self.taken} tokens")
            self.closed = True
        else:
            inner = self.own()
            if not inner.consume_token(token):
                raise self._failed(inner)
        self.taken += 1

    def take(self, tokens: Sequence[int]) -> None:
        """Move over several tokens; see `advance`."""
        for token in tokens:
            self.advance(token)

    def renewed(self, tokens: Sequence[int]) -> Matcher:
        """One that has read `tokens` of the document with a new lexer.

        A lexer that passes a limit fails for all paths that share it. With a new one, only that path fails again which
        is too much by itself.

        Raises:
            GrammarError: this one is.
        """
        twin = Matcher.__new__(Matcher)
        twin.compiled, twin.start, twin.taken, twin.closed = self.compiled, self.start, 0, False
        twin.state = State(self.compiled.renew(self.state.family), self.state.family)
        twin.take(tokens)
        return twin

    def rollback(self, count: int) -> bool:
        """Go back `count` tokens; False, and the matcher is of no use, where the grammar can't."""
        if count == 0:
            return True
        end = int(self.closed)
        good = count == end or self.own().rollback(count - end)  # a copy is made of where it still stands
        self.closed = False
        self.taken -= count
        return good

    def forced(self, least: int = 1) -> list[int]:
        """The tokens that must follow, in the tokenizer's own spelling.

        Empty where there is a choice, and where they spell fewer than `least` bytes: no token spells less than one, and
        bytes cost a tenth of what tokens do.
        """
        if self.closed:
            return []
        inner = self.state.settle()
        return inner.compute_ff_tokens() if len(inner.compute_ff_bytes()) >= least else []

    def own(self) -> LLMatcher:
        """The state's matcher, for this path alone and about to move: the mask of where it stands is dropped."""
        state = self.state
        if state.owners == 1:
            state.bits = None
            return state.settle()
        state.owners -= 1
        # Documents that begin side by side each get a family of their own; later on a copy is cheaper than a replay.
        self.state = State(state.settle().deep_copy(), state.family) if self.taken else State(*self.compiled.fresh())
        return self.state.inner

    def _failed(self, inner: LLMatcher) -> GrammarError:
        return GrammarError(self.compiled.place, first_line(inner.get_error()))

"""The grammars of an engine's generations: where each stands, what it may say next, and what it must."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dendrite.config import EngineConfig, SamplingParams
from dendrite.engine.generation import Generation
from dendrite.errors import DendriteError, GrammarError, InvalidArgument
from dendrite.grammar.compiler import Bits, CompiledGrammar, GrammarCompiler, wrapped
from dendrite.grammar.masks import MaskPool, masked
from dendrite.grammar.matcher import Matcher
from dendrite.grammar.place import place
from dendrite.grammar.walk import MaskTable, Walk
from dendrite.kv.node import Node
from dendrite.model.tokenizer import Tokenizer

_MAX_THREADS = 8
_LEAST_FORCED, _LEAST_FORCED_ON_CUDA = 2, 16
"""Shortest run of forced tokens that is computed as a chunk: on CUDA a chunk costs as much as some steps of graphs."""


@dataclass(frozen=True, slots=True)
class _Tools:
    compiler: GrammarCompiler
    pool: MaskPool


class Constraints:
    """Starts, moves and masks the generations of one engine that have a grammar; the others it passes over."""

    def __init__(self, tokenizer: Tokenizer | None, vocabulary: int, config: EngineConfig, *, on_cuda: bool) -> None:
        """Prepare nothing yet: a tokenizer takes up to a second to wrap, and many engines see no grammar.

        Args:
            tokenizer: the model's.
            vocabulary: tokens that logits are for.
            config: the engine's.
            on_cuda: whether decode steps are replayed as graphs.
        """
        self._tokenizer, self._vocabulary, self._config = tokenizer, vocabulary, config
        self._least_forced = _LEAST_FORCED_ON_CUDA if on_cuda else _LEAST_FORCED
        self._made: _Tools | None = None

    def begin(self, generations: Sequence[Generation], params: SamplingParams) -> dict[Generation, DendriteError]:
        """Give new generations their matchers, and return those that can't start, each with the reason.

        Raises:
            GrammarError: the grammar can't be compiled.
            InvalidArgument: the model has no tokenizer for a grammar, or a path is shorter than `grammar_tokens`.
        """
        if params.grammar is None:
            return {}
        tools = self._tools()
        compiled = tools.compiler.compile(params.grammar)
        failed: dict[Generation, DendriteError] = {}
        siblings: dict[tuple[Node, int], Matcher] = {}  # what stands where children fork off, so that they share it
        for generation in generations:
            try:
                generation.matcher = _matcher(generation.node, compiled, params.grammar_tokens, siblings)
            except GrammarError as error:
                failed[generation] = error
        for generation in generations:
            generation.node.guidance.grammar = generation.matcher
        self.request(generations)
        return failed

    def request(self, generations: Sequence[Generation]) -> None:
        """Have the masks of their next tokens computed meanwhile."""
        matchers = [generation.matcher for generation in generations if generation.matcher is not None]
        if matchers:
            self._tools().pool.request(matchers)

    def failed(self, generations: Sequence[Generation]) -> list[tuple[Generation, GrammarError]]:
        """Wait for the masks; those generations that have none, because a limit was passed."""
        failed = []
        for generation in generations:
            try:
                if generation.matcher is not None:
                    _ = generation.matcher.bits
            except GrammarError:
                try:
                    self._renew(generation, generation.node.length)
                except GrammarError as error:
                    failed.append((generation, error))
        return failed

    def mask(self, logits: Tensor, generations: Sequence[Generation]) -> Tensor:
        """[B, V] logits with what the grammars forbid at minus infinity; `logits` itself where no row has one."""
        rows, bits = constrained(generations)
        return masked(logits, rows, bits) if rows else logits

    def advance(self, generation: Generation, token: int) -> bool:
        """Move over a token; whether the document has ended with it, or the generation has failed."""
        matcher = generation.matcher
        if matcher is None:
            return False
        after = matcher.end + 1
        try:
            matcher.advance(token)
        except GrammarError:
            return self._recover(generation, after)
        return matcher.finished

    def walk(self, generations: Sequence[Generation], masks: MaskTable) -> Walk:
        """Take the rows of a burst through their grammars; `align` each afterwards.

        Args:
            generations: the rows, some of which have a grammar; their masks must be there (`failed`).
            masks: [rows, words] int32, written.
        """
        matchers = {row: g.matcher for row, g in enumerate(generations) if g.matcher is not None}
        return self._tools().pool.walk(matchers, masks, self._least_forced)

    def align(self, generation: Generation) -> bool:
        """Bring the matcher to the end of the node, from before or behind it; whether the generation ends there."""
        matcher, end = generation.matcher, generation.node.length
        if matcher is None:
            return False
        if matcher.end < end or matcher.failed or not matcher.rollback(matcher.end - end):
            return self._recover(generation, end)
        return matcher.finished

    def restart(self, generation: Generation) -> None:
        """Find the place at the end of the node again, whatever a burst that failed has done to the matcher."""
        if generation.matcher is not None and not generation.done:
            self._recover(generation, generation.node.length)

    def forced(self, generation: Generation, room: int) -> list[int]:
        """The tokens that must come next, at most `room`; none where it is not worth a chunk. Moves nothing."""
        if generation.matcher is None or generation.done or room < self._least_forced:
            return []
        tokens = generation.matcher.forced(self._least_forced)[:room]
        return tokens if len(tokens) >= self._least_forced else []

    def close(self) -> None:
        """End the threads."""
        if self._made is not None:
            self._made.pool.close()

    def _recover(self, generation: Generation, end: int) -> bool:
        """Start again as `_renew` does, and fail the generation where that is too much; whether it ends there."""
        try:
            return self._renew(generation, end).finished
        except GrammarError as error:
            if generation.done:  # who goes on from here has the tokens read again
                generation.matcher = generation.node.guidance.grammar = None
            else:
                generation.finish_reason, generation.error = "error", error
            return True

    def _renew(self, generation: Generation, end: int) -> Matcher:
        """Start again, with a lexer of its own, a generation that has failed; it has read its path up to `end` then."""
        assert generation.matcher is not None
        node, start = generation.node, generation.matcher.start
        matcher = generation.matcher.renewed(node.path_tokens[start:end])
        self._tools().pool.request([matcher])
        _ = matcher.bits
        generation.matcher = node.guidance.grammar = matcher
        return matcher

    def _tools(self) -> _Tools:
        if self._made is None:
            if self._tokenizer is None:
                raise InvalidArgument("grammar", None, "needs a model with a tokenizer")
            threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2))
            compiler = GrammarCompiler(
                wrapped(self._tokenizer, self._vocabulary),
                limits=self._config.grammar_limits,
                capacity=self._config.grammar_cache,
                families=threads,
            )
            self._made = _Tools(compiler, MaskPool(threads, compiler.words))
        return self._made


def constrained(generations: Sequence[Generation]) -> tuple[list[int], list[Bits]]:
    """Rows that have a grammar, and the bits of each; they must be there (`Constraints.failed`)."""
    rows = [row for row, generation in enumerate(generations) if generation.matcher is not None]
    return rows, [matcher.bits for generation in generations if (matcher := generation.matcher) is not None]


def note_raw(node: Node, logprobs: Sequence[float]) -> None:
    """Store the model's own log-probabilities of the last tokens, whose `logprobs` are on the node already."""
    raw = node.guidance.raw_logprobs
    raw += node.logprobs[len(raw) : len(node.logprobs) - len(logprobs)]
    raw += logprobs


def _matcher(
    node: Node, compiled: CompiledGrammar, tokens: int | None, siblings: dict[tuple[Node, int], Matcher]
) -> Matcher:
    if node.parent is None or node.tokens:
        return place(node, compiled, tokens)
    key = node.parent, node.base
    if key not in siblings:
        siblings[key] = place(node, compiled, tokens)
    return siblings[key].fork()

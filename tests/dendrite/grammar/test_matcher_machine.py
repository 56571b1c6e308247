"""Any tree of forks, steps and steps back: a mask is, bit for bit, that of a fresh matcher that reads the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from dendrite.grammar import Grammar
from dendrite.grammar.compiler import CompiledGrammar, GrammarCompiler
from dendrite.grammar.masks import MaskPool, allowed
from dendrite.grammar.matcher import Matcher
from tests.dendrite.grammar.byte_tokens import VOCABULARY, byte_tokenizer

GRAMMARS = (
    Grammar(
        json_schema={
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 3},
                "tags": {"type": "array", "items": {"enum": ["ab", "abc"]}, "maxItems": 3},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
            },
            "required": ["name", "next"],
        },
        white_space=False,
    ),
    Grammar(json_schema={"type": "array", "items": {"type": ["boolean", "number", "null"]}}),
    Grammar(regex="(ab|abc|a)*[0-9]{0,4}"),
    Grammar(lark='start: "(" start* ")" | /a+/'),
)


class MatcherMachine(RuleBasedStateMachine):
    matchers = Bundle("matchers")

    @initialize(target=matchers, grammar=st.sampled_from(GRAMMARS), families=st.integers(1, 2))
    def begin(self, grammar: Grammar, families: int) -> Matcher:
        self.pool = MaskPool(families, -(-VOCABULARY // 32))
        self.compiled: CompiledGrammar = GrammarCompiler(byte_tokenizer(), families=families).compile(grammar)
        self.paths: dict[int, tuple[Matcher, list[int]]] = {}
        return self.document()

    def tokens(self, matcher: Matcher) -> list[int]:
        return self.paths[id(matcher)][1]

    @rule(target=matchers)
    def document(self) -> Matcher:
        first = Matcher(self.compiled, 0)
        self.paths[id(first)] = first, []
        return first

    @rule(target=matchers, matcher=matchers)
    def fork(self, matcher: Matcher) -> Matcher:
        twin = matcher.fork()
        self.paths[id(twin)] = twin, list(self.tokens(matcher))
        return twin

    @rule(matcher=matchers, choice=st.integers(0, 2**16), steps=st.integers(1, 4))
    def advance(self, matcher: Matcher, choice: int, steps: int) -> None:
        for step in range(steps):
            if matcher.closed:
                return
            self.pool.request([matcher])
            may = allowed([matcher.bits], VOCABULARY)[0].nonzero().flatten().tolist()
            token = may[(choice >> step) % len(may)]
            matcher.advance(token)
            self.tokens(matcher).append(token)

    @rule(matcher=matchers)
    def force(self, matcher: Matcher) -> None:
        run = matcher.forced()
        matcher.take(run)
        self.tokens(matcher).extend(run)

    @rule(matcher=matchers, share=st.floats(0, 1))
    def rollback(self, matcher: Matcher, share: float) -> None:
        tokens = self.tokens(matcher)
        count = int(share * len(tokens))
        assert matcher.rollback(count)
        del tokens[len(tokens) - count :]

    @rule(matcher=consumes(matchers))
    def drop(self, matcher: Matcher) -> None:
        del self.paths[id(matcher)]

    @invariant()
    def owners_are_those_that_stand_there(self) -> None:
        states = [matcher.state for matcher, _ in getattr(self, "paths", {}).values()]
        for state in states:
            assert state.owners >= sum(other is state for other in states)

    @invariant()
    def masks_are_those_of_a_replay(self) -> None:
        known = list(getattr(self, "paths", {}).values())
        if not known:
            return
        self.pool.request([matcher for matcher, _ in known])
        for matcher, tokens in known:
            fresh = Matcher(self.compiled, 0)
            fresh.take(tokens)
            self.pool.request([fresh])
            np.testing.assert_array_equal(matcher.bits, fresh.bits)
            assert (matcher.accepting, matcher.finished, matcher.taken) == (
                fresh.accepting,
                fresh.finished,
                len(tokens),
            )

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


TestMatcherMachine: Any = MatcherMachine.TestCase
TestMatcherMachine.settings = settings(max_examples=25, stateful_step_count=15)


@pytest.mark.slow
def test_long_histories() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(MatcherMachine, settings=settings(max_examples=300, stateful_step_count=50))

"""Where a node stands: taken over from its ancestors where they know it, else read again from its tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import GrammarError, InvalidArgument
from dendrite.grammar import Grammar
from dendrite.grammar.compiler import CompiledGrammar, GrammarCompiler
from dendrite.grammar.matcher import Matcher
from dendrite.grammar.place import place
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from tests.dendrite.grammar.byte_tokens import byte_tokenizer

COMPILER = GrammarCompiler(byte_tokenizer())
LETTERS = COMPILER.compile(Grammar(regex="[abc]*x?"))
OTHER = COMPILER.compile(Grammar(regex="[a-z]*"))
COUNTED = COMPILER.compile(Grammar(lark='start: x "b"\nx[max_tokens=9]: /a+/'))


def prompt(text: bytes, cache: KvCache | None = None) -> Node:
    cache = cache or KvCache(64, 16)
    return cache.new_tree(list(text), tree_id=1, seed=0, detokenize=repr)


def written(parent: Node, text: bytes, compiled: CompiledGrammar | None = LETTERS, at: int | None = None) -> Node:
    """A child that has generated `text` under a grammar."""
    (node,) = parent.fork() if at is None else parent.at(at).fork()
    if compiled is not None:
        node.guidance.grammar = place(node, compiled, None)
    for token in text:
        node.tokens.append(token)
        if compiled is not None:
            assert node.grammar is not None
            node.grammar.advance(token)
    return node


def stands(matcher: Matcher) -> tuple[int, int]:
    return matcher.start, matcher.taken


def test_a_document_begins_at_the_node_and_goes_on_below_it() -> None:
    first = written(prompt(b"say: "), b"ab")
    assert stands(place(first, LETTERS, None)) == (5, 2)
    (kid,) = first.fork()
    found = place(kid, LETTERS, None)
    assert stands(found) == (5, 2)
    assert found.state is first.grammar.state, "nothing was copied"  # type: ignore[union-attr]
    (grandkid,) = kid.fork()
    assert stands(place(grandkid, LETTERS, None)) == (5, 2)


def test_another_grammar_or_foreign_tokens_begin_a_document() -> None:
    first = written(prompt(b"say: "), b"ab")
    (kid,) = first.fork()
    assert stands(place(kid, OTHER, None)) == (7, 0)
    answered = written(first, b"<tool>", None)
    assert stands(place(answered, LETTERS, None)) == (13, 0)
    first.tokens += b"!!"
    assert stands(place(first, LETTERS, None)) == (9, 0)


def test_a_fork_inside_goes_back() -> None:
    first = written(prompt(b"say: "), b"abcx")
    for at in range(5):
        (kid,) = first.at(at).fork()
        assert stands(place(kid, LETTERS, None)) == (5, at)
    assert stands(first.grammar) == (5, 4)  # type: ignore[arg-type]


def test_where_going_back_is_refused_the_tokens_are_read_again() -> None:
    first = written(prompt(b"say: "), b"aaa", COUNTED)
    (kid,) = first.at(2).fork()
    found = place(kid, COUNTED, None)
    assert stands(found) == (5, 2)
    found.take(b"ab")
    assert found.finished


def test_the_count_of_tokens_is_enough_anywhere() -> None:
    rebuilt = prompt(b"say: ab")
    found = place(rebuilt, LETTERS, 2)
    assert stands(found) == (5, 2)
    assert stands(place(rebuilt, LETTERS, 0)) == (7, 0)
    with pytest.raises(GrammarError, match=r"the tokens on the path are not of the grammar"):
        place(rebuilt, LETTERS, 3)
    with pytest.raises(InvalidArgument, match="at most the 7 tokens on the path"):
        place(rebuilt, LETTERS, 8)


def test_the_count_is_believed_before_what_ancestors_know() -> None:
    first = written(prompt(b"say: "), b"abc")
    (kid,) = first.fork()
    assert stands(place(kid, LETTERS, 1)) == (7, 1)
    answered = written(first, b"ca", None)
    found = place(answered, LETTERS, 5)
    assert stands(found) == (5, 5)


def test_a_prompt_that_continues_another_trees_document_begins_anew() -> None:
    cache = KvCache(64, 16)
    root = prompt(b"a" * 16, cache)
    cache.reserve(root, 16)
    cache.commit(root, 16)
    cache.seal(root)
    root.guidance.grammar = Matcher(LETTERS, 0)
    root.grammar.take(root.tokens)
    again = prompt(b"a" * 16, cache)
    assert again.base > 0
    assert stands(place(again, LETTERS, None)) == (16, 0)
    assert stands(place(again, LETTERS, 16)) == (0, 16)


@given(
    spans=st.lists(st.tuples(st.text("abc", max_size=5), st.floats(0, 1)), min_size=1, max_size=6),
    forget=st.sets(st.integers(0, 5)),
)
def test_any_chain_of_forks_stands_where_its_tokens_lead(spans: list[tuple[str, float]], forget: set[int]) -> None:
    node = prompt(b"say: ")
    for index, (text, share) in enumerate(spans):
        node = written(node, text.encode(), at=int(share * len(node.tokens)) if index else None)
        found, fresh = place(node, LETTERS, node.length - 5), Matcher(LETTERS, 5)
        fresh.take(node.path_tokens[5:])
        assert stands(found) == stands(fresh)
        assert found.state.settle().compute_bitmask() == fresh.state.settle().compute_bitmask()
        if index in forget:
            node.guidance.grammar = place(node, LETTERS, node.length - 5)

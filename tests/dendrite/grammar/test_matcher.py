from __future__ import annotations

from collections.abc import Iterator

import pytest

from dendrite.errors import GrammarError
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.masks import MaskPool, allowed
from dendrite.grammar.matcher import Matcher
from tests.dendrite.grammar.byte_tokens import EOS, VOCABULARY, byte_tokenizer, compiled

WORDS = -(-VOCABULARY // 32)


@pytest.fixture
def pool() -> Iterator[MaskPool]:
    pool = MaskPool(2, WORDS)
    yield pool
    pool.close()


def tokens_allowed(pool: MaskPool, matcher: Matcher) -> list[int]:
    pool.request([matcher])
    return allowed([matcher.bits], VOCABULARY)[0].nonzero().flatten().tolist()


def test_forks_share_a_state_until_one_of_them_moves() -> None:
    parent = Matcher(compiled(regex="[ab]*c"), 5)
    parent.take(b"ab")
    first, second = parent.fork(), parent.fork()
    assert first.state is second.state is parent.state
    assert parent.state.owners == 3
    first.advance(ord("a"))
    assert first.state is not parent.state
    assert (parent.state.owners, first.state.owners) == (2, 1)
    assert (parent.end, first.end) == (7, 8)
    own = first.state
    first.advance(ord("b"))
    assert first.state is own, "nobody else stands there"


def test_the_last_one_left_moves_without_a_copy() -> None:
    parent = Matcher(compiled(regex="[ab]*c"), 0)
    parent.advance(ord("a"))
    child, shared = parent.fork(), parent.state
    del parent
    child.advance(ord("b"))
    assert child.state is shared


def test_the_end_comes_only_where_the_grammar_accepts(pool: MaskPool) -> None:
    matcher = Matcher(compiled(regex="a+b?"), 0)
    assert EOS not in tokens_allowed(pool, matcher)
    with pytest.raises(GrammarError, match=f"token {EOS} does not fit after 0 tokens"):
        matcher.fork().advance(EOS)
    matcher.advance(ord("a"))
    assert matcher.accepting
    assert not matcher.finished
    assert set(tokens_allowed(pool, matcher)) == {ord("a"), ord("b"), EOS, 256 + 6}
    matcher.advance(EOS)
    assert matcher.accepting
    assert matcher.finished
    assert tokens_allowed(pool, matcher) == [EOS]
    assert matcher.forced() == []
    with pytest.raises(GrammarError, match="does not fit after 2 tokens"):
        matcher.advance(ord("a"))


def test_going_back_undoes_an_end_too(pool: MaskPool) -> None:
    matcher = Matcher(compiled(regex="a+"), 3)
    matcher.take([97, 97, 97, EOS])
    assert matcher.rollback(2)
    assert (matcher.closed, matcher.taken) == (False, 2)
    assert EOS in tokens_allowed(pool, matcher)
    assert matcher.rollback(2)
    assert tokens_allowed(pool, matcher) == tokens_allowed(pool, Matcher(matcher.compiled, 3))


def test_a_fork_goes_back_to_the_beginning(pool: MaskPool) -> None:
    parent = Matcher(compiled(regex="[ab]*c"), 0)
    parent.take(b"ab")
    fork = parent.fork()
    assert fork.rollback(2)
    assert (fork.taken, parent.taken) == (0, 2)
    assert tokens_allowed(pool, fork) == tokens_allowed(pool, Matcher(fork.compiled, 0))


def test_going_back_leaves_forks_where_they_are(pool: MaskPool) -> None:
    matcher = Matcher(compiled(regex="abcd"), 0)
    matcher.take(b"abc")
    twin = matcher.fork()
    assert matcher.rollback(2)
    assert tokens_allowed(pool, twin) == [ord("d")]
    assert ord("b") in tokens_allowed(pool, matcher)


def test_a_grammar_that_counts_tokens_cannot_go_back() -> None:
    matcher = Matcher(compiled(lark='start: x "b"\nx[max_tokens=5]: /a+/'), 0)
    matcher.take(b"aa")
    assert not matcher.rollback(1)


def test_a_token_that_does_not_fit_is_an_error() -> None:
    matcher = Matcher(compiled(json_schema={"type": "integer"}), 0)
    with pytest.raises(GrammarError, match=r"grammar at \$: .*"):
        matcher.advance(ord("x"))


@pytest.mark.parametrize(
    ("document", "spaced", "compact"),
    [
        ('{"a":[1,2]}', True, True),
        ('{"a": [1, 2]}', True, False),
        ('{\n  "a": [\n    1\n  ]\n}', True, False),
        ('{  "a":[1]}', False, False),
        ('{\n\n"a":[1]}', False, False),
    ],
)
def test_white_space_is_bounded_or_left_out(document: str, spaced: bool, compact: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    for white_space, fits in ((True, spaced), (False, compact)):
        matcher = Matcher(compiled(json_schema=schema, white_space=white_space), 0)
        if fits:
            matcher.take(document.encode())
            assert matcher.finished
        else:
            with pytest.raises(GrammarError):
                matcher.take(document.encode())


@pytest.mark.parametrize("white_space", [True, False])
@pytest.mark.parametrize(
    ("guidance", "fitting", "other"),
    [
        ({"whitespace_flexible": False}, "[1,2]", "[1, 2]"),
        ({"whitespace_pattern": "_"}, "[_1_,_2_]", "[1, 2]"),
    ],
)
def test_a_schema_says_itself_what_white_space_it_has(
    guidance: dict[str, object], fitting: str, other: str, white_space: bool
) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2, "x-guidance": guidance}
    grammar = compiled(json_schema=schema, white_space=white_space)
    matcher = Matcher(grammar, 0)
    matcher.take(fitting.encode())
    assert matcher.finished
    with pytest.raises(GrammarError):
        Matcher(grammar, 0).take(other.encode())


def test_forced_tokens_are_those_without_a_choice() -> None:
    schema = {"type": "object", "properties": {"flag": {"type": "boolean"}}, "required": ["flag"]}
    matcher = Matcher(compiled(json_schema=schema, white_space=False), 0)
    run = matcher.forced()
    assert b"".join(byte_tokenizer().decode_bytes([token]) for token in run) == b'{"flag":'
    assert matcher.forced(len(run)) == run
    assert matcher.forced(len(run) + 1) == []
    matcher.take(run)
    assert matcher.forced() == []


def test_states_that_are_shared_have_one_mask(pool: MaskPool) -> None:
    parent = Matcher(compiled(regex="[ab]+"), 0)
    kids = [parent.fork() for _ in range(4)]
    pool.request([*kids, parent])
    assert len({id(kid.bits) for kid in kids}) == 1
    before = kids[0].bits
    pool.request(kids)
    assert kids[0].bits is before


def test_a_grammar_that_is_too_much_work_fails_where_it_is(pool: MaskPool) -> None:
    heavy = compiled(GrammarLimits(step_lexer_fuel=200), regex="[ab]*a[ab]{60}")
    light = Matcher(compiled(regex="[ab]+"), 0)
    matcher = Matcher(heavy, 0)

    def write(count: int) -> None:
        for at in range(count):
            pool.request([matcher, light])
            assert matcher.bits.any()
            assert light.bits.any()
            matcher.advance(ord("ab"[at % 2]))
            light.advance(ord("a"))

    with pytest.raises(GrammarError, match="lexer error"):
        write(100)
    pool.request([light])
    assert light.bits.any()
    assert (matcher.failed, light.failed) == (True, False)


def test_a_new_lexer_is_none_the_worse_for_what_others_did_with_the_old(pool: MaskPool) -> None:
    grammar = compiled(GrammarLimits(step_lexer_fuel=200), lark='start: "x" /[ab]*a[ab]{60}/ | "y" /[0-9]{9}/')
    heavy, light = Matcher(grammar, 0), Matcher(grammar, 4)
    heavy.advance(ord("x"))
    light.advance(ord("y"))
    at = 0
    while not heavy.failed:
        heavy.advance(ord("ab"[at % 2]))
        pool.request([heavy])
        at += 1
    pool.request([light])
    assert light.failed, "they share a lexer"
    again = light.renewed(b"y")
    assert (again.start, again.taken) == (4, 1)
    assert ord("7") in tokens_allowed(pool, again)
    assert tokens_allowed(pool, Matcher(grammar, 0)), "documents to come have the new lexer too"


def test_threads_start_again_after_they_were_ended(pool: MaskPool) -> None:
    matcher = Matcher(compiled(regex="ab"), 0)
    assert tokens_allowed(pool, matcher)
    pool.close()
    matcher.advance(ord("a"))
    assert tokens_allowed(pool, matcher) == [ord("b")]

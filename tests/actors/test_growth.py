"""A child on record while it grows, whatever becomes of the messages that tell of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.exchange import Piece
from actors.growth import Growth
from actors.lineage import Copy, Lineage
from actors.refs import ClusterNode
from dendrite.config import SamplingParams
from dendrite.search.backend import Branch

ROOT, CHILD = ClusterNode(0, 1, 0), ClusterNode(0, 1, 1)
PARAMS = SamplingParams(max_tokens=64)


def whole_of(tokens: tuple[int, ...]) -> Branch:
    logprobs = tuple(-float(token) for token in tokens)
    return Branch(CHILD, tokens, "", logprobs, None, "length", top_logprobs=(((1, -1.0),),) * len(tokens))


@given(
    parts=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=8),
    lost=st.sets(st.integers(0, 7)),
    late=st.integers(0, 8),
    released=st.booleans(),
)
def test_what_is_told_and_what_ends_it_is_the_whole(
    parts: list[list[int]], lost: set[int], late: int, released: bool
) -> None:
    tokens = tuple(token for part in parts for token in part)
    lineage, told = Lineage(), list[Branch]()
    parent = lineage.add(Copy(ROOT, 0), (1, 2))
    growth = Growth(lineage, told.append)
    growth.begin(parent, 0, PARAMS)
    pieces, start = list[Piece](), 0
    for part in parts[:-1]:
        pieces.append(
            Piece(1, CHILD, start, tuple(part), tuple(-float(token) for token in part), (((1, -1.0),),) * len(part))
        )
        start += len(part)
    in_time = [piece for index, piece in enumerate(pieces) if index not in lost and index < late]
    for piece in in_time:
        growth.take(piece)
    assert (growth.child is None) == (not in_time)
    if growth.child is not None:
        assert (
            growth.child.tokens
            == tuple(token for branch in told for token in branch.tokens)
            == tokens[: len(growth.child.tokens)]
        )
        name, rest = growth.left
        assert (name, rest.max_tokens) == (CHILD, 64 - len(growth.child.tokens))
        if released:
            lineage.release(CHILD, subtree=False)
    growth.stop()
    last = growth.end(whole_of(tokens))
    for piece in pieces[late:]:
        growth.take(piece)
    if released and in_time:
        assert last is None
        assert not any(copy.open for copy in growth.child.copies) if growth.child is not None else False
    else:
        assert last is not None
        found = [*told, last]
        assert tuple(token for branch in found for token in branch.tokens) == tokens
        assert tuple(each for branch in found for each in branch.logprobs) == whole_of(tokens).logprobs
        assert sum(len(branch.top_logprobs) for branch in found) == len(tokens)
        child = lineage.get(CHILD)
        assert child.tokens == tokens
        assert [copy.open for copy in child.copies] == [True]
        assert not child.growing

from __future__ import annotations

import pytest

from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.budget import Budget
from dendrite.search.session import Flights, Session, Thought
from dendrite.search.siblings import Draws, Place, Siblings, worth
from tests.dendrite.search.frontier import Distinct
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, uniform

SURE = {"": {"a\n": 0.9, "b\n": 0.04, "c\n": 0.04, "d\n": 0.02}}


async def draw(backend: TreeBackend, want: int, budget: Budget, puzzle: Puzzle | None = None) -> Siblings:
    session = Session(puzzle or Puzzle({}), backend, budget, 5)
    await session.open()
    siblings = Siblings(Place(session.root), want)
    async with Flights[Siblings](session, 1.0) as flights:
        draws = Draws(session, flights)
        draws.add(siblings)
        await draws.next()
    await session.flush()
    return siblings


def steps(siblings: Siblings) -> list[str]:
    return [child.thought.step for child in siblings.children]


@pytest.mark.parametrize("want", [1, 2, 3, 4])
async def test_children_differ_however_sure_the_model_is(want: int) -> None:
    backend = Distinct(SURE)
    siblings = await draw(backend, want, Budget(tokens=10_000))
    assert len(set(steps(siblings))) == len(siblings.children) == want
    assert siblings.missing == 0
    assert [child.path for child in siblings.children] == [(index,) for index in range(want)]
    assert sorted(backend.held) == sorted(["", *steps(siblings)]), "repeats are released"
    assert backend.calls[0][1:2] == (want,)
    for index, (_, n, params) in enumerate(backend.calls[1:], 1):
        assert n == want - len(params.without), "what is missing is asked for, and the known is left out"
        assert params.seed != backend.calls[index - 1][2].seed


async def test_no_more_is_drawn_than_the_model_has() -> None:
    siblings = await draw(backend := Distinct(SURE), 9, Budget(tokens=10_000))
    assert sorted(steps(siblings)) == ["a\n", "b\n", "c\n", "d\n"]
    assert (siblings.missing, len(backend.calls) < 6) == (0, True)


async def test_a_backend_that_repeats_itself_is_not_asked_for_ever() -> None:
    class Stubborn(TreeBackend):
        def _sample(self, kid: int, index: int, params: object) -> object:  # type: ignore[override]
            self.table = {"": {"a\n": 0.5}}
            return super()._sample(kid, index, params)  # type: ignore[arg-type]

    backend = Stubborn({"": uniform("a\n", "b\n")})
    siblings = await draw(backend, 3, Budget(tokens=10_000))
    assert (steps(siblings), siblings.missing, len(backend.calls)) == (["a\n"], 0, 2)


async def test_what_the_budget_has_no_room_for_stays_missing() -> None:
    siblings = await draw(Distinct(SURE), 4, Budget(expansions=1))
    assert siblings.missing == 4 - len(siblings.children) > 0
    siblings = await draw(backend := Distinct(SURE), 4, Budget(tokens=20), Puzzle({}, step_tokens=8))
    assert backend.calls[0][1] == 2, "a grant may be smaller than what was asked for"
    assert backend.decoded <= 20


async def test_a_full_context_has_no_children() -> None:
    siblings = await draw(Distinct(SURE, failures={0: ContextOverflow(9, 8)}), 4, Budget(tokens=100))
    assert (siblings.children, siblings.missing) == ([], 0)
    assert siblings.leaves == [siblings.parent]


async def test_a_place_adds_up_its_path() -> None:
    place = Place(Thought("n", tokens=(1,)), (2,), -1.0, 1).child(4, Thought("m", tokens=(5, 6), logprobs=(-0.5, -1.0)))
    assert (place.path, place.logprob, place.length) == ((2, 4), -2.5, 3)


def test_an_end_is_worth_its_reward_and_other_paths_their_estimate() -> None:
    assert worth(Thought("n", value=0.7, reward=0.2), ("score", "value")) == 0.2
    assert worth(Thought("n", value=0.7), ("score", "value")) == 0.7
    assert worth(Thought("n", reward=0.0), ("score", "value")) == 0.0
    with pytest.raises(InvalidArgument, match="score='value': the model has no value head"):
        worth(Thought("n"), ("score", "value"))

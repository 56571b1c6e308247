from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search import Budget, run_search_async
from dendrite.search.chain import Chain
from dendrite.search.self_consistency import SelfConsistency, SelfConsistencyOptions, decided
from dendrite.search.session import Session
from dendrite.search.thought import Thought
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary, leaves, uniform


@dataclass(frozen=True)
class Poll(Puzzle):
    """The answer is the last line of an end; many ends give the same one."""

    def answer(self, text: str) -> str | None:
        line = text.split("\n")[-2] if text in self.rewards and text else ""
        return line if line and line != "none" else None


@dataclass
class Sample:
    """An end by hand: its text, and the values of its thoughts."""

    text: str
    values: list[float] = field(default_factory=lambda: [0.5])
    reward: float | None = 0.0


def vote(samples: list[Sample], **options: Any) -> str:
    """The text chosen among samples that are as given."""
    ends = {sample.text: 0.0 for sample in samples if sample.reward is not None}
    session = Session(Poll(ends), TreeBackend({}), Budget(tokens=1), 0)
    session._root = Thought()
    search = SelfConsistency(session, SelfConsistencyOptions(**options))
    for index, sample in enumerate(samples):
        thoughts = [Thought(index, value=value) for value in sample.values[:-1]]
        thoughts.append(
            Thought(index, sample.text, value=sample.values[-1], reward=sample.reward, ended=sample.reward is not None)
        )
        search._chains.append(Chain(session.root, (index,), thoughts))
    best = search.best()
    assert best is not None
    return best.text


SPLIT = [
    Sample("1\na\n", [0.9, 0.9]),
    Sample("2\nb\n", [0.4, 0.8]),
    Sample("3\nb\n", [0.5, 0.2]),
    Sample("4\nb\n", [0.2, 0.1]),
    Sample("5\nc\n", [0.1, 1.0]),
    Sample("6\nc\n", [0.1, 0.95]),
]


@pytest.mark.parametrize(
    ("weights", "winner"),
    [
        ("count", "2\nb\n"),  # a 1, b 3, c 2
        ("last", "5\nc\n"),  # a 0.9, b 1.1, c 1.95
        ("min", "1\na\n"),  # a 0.9, b 0.7, c 0.2
        ("prod", "1\na\n"),  # a 0.81, b 0.44, c 0.195
        ("mean", "2\nb\n"),  # a 0.9, b 1.1, c 1.075
    ],
)
def test_the_vote_by_hand(weights: str, winner: str) -> None:
    assert vote(SPLIT, weights=weights) == winner


def test_a_tie_goes_to_the_answer_seen_first() -> None:
    assert (
        vote([Sample("1\na\n", [0.1]), Sample("2\nb\n", [0.9]), Sample("3\nb\n"), Sample("4\na\n", [0.2])]) == "4\na\n"
    )
    assert vote([Sample("1\na\n", [0.0]), Sample("2\nb\n", [0.0])], weights="last") == "1\na\n"


def test_the_representative_is_the_first_of_the_highest_value() -> None:
    assert vote([Sample("1\na\n", [0.1]), Sample("2\na\n", [0.7]), Sample("3\na\n", [0.7])]) == "2\na\n"
    assert vote([Sample("1\na\n", [0.1, 0.9]), Sample("2\na\n", [0.5, 0.5])], weights="min") == "2\na\n"


def test_rewards_have_no_say() -> None:
    right = Sample("1\na\n", reward=1.0)
    assert vote([right, Sample("2\nb\n"), Sample("3\nb\n")]) == "2\nb\n"
    assert vote([Sample("1\na\n", [0.9]), Sample("2\na\n", [0.1], reward=1.0)]) == "1\na\n"


def test_only_ended_samples_with_an_answer_vote() -> None:
    unfinished = [Sample("1\nb\n", reward=None), Sample("2\nb\n", reward=None)]
    assert vote([*unfinished, Sample("3\nnone\n"), Sample("4\nnone\n"), Sample("5\na\n")]) == "5\na\n"
    assert vote([Sample("1\nnone\n", [0.9]), Sample("2\nb", [0.1], reward=None)]) == "2\nb", "it still might answer"
    assert vote([Sample("1\nnone\n", [0.2]), Sample("2\nnone\n", [0.3])]) == "2\nnone\n"


ALL: dict[str, Any] = {"early_stop": False}


class Watched(TreeBackend):
    most_held = 0

    async def expand(self, node: Any, n: int, params: Any) -> Any:
        self.most_held = max(self.most_held, len(self.held))
        return await super().expand(node, n, params)


async def test_all_samples_are_drawn_though_the_first_may_solve() -> None:
    """Right answers at 30 %, wrong ones alike at 70 %: the vote is wrong, and says so."""
    backend = TreeBackend({"": {"r\n": 0.3, "w\n": 0.7}, "r\n": {"a\n": 1.0}, "w\n": {"b\n": 1.0}})
    result = await run_search_async(Poll({"r\na\n": 1.0, "w\nb\n": 0.0}), backend, "self_consistency", n=64, **ALL)
    assert (result.answer, result.solved, result.stop_reason) == ("b", False, "exhausted")
    assert (result.expansions, result.nodes) == (128, 129)
    assert backend.held == []
    backend = TreeBackend({"": {"r\n": 0.7, "w\n": 0.3}, "r\n": {"a\n": 1.0}, "w\n": {"b\n": 1.0}})
    result = await run_search_async(Poll({"r\na\n": 1.0, "w\nb\n": 0.0}), backend, "self_consistency", n=64, **ALL)
    assert (result.answer, result.solved, result.expansions) == ("a", True, 128)


VOTES = ["a", "b", "c", None]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_a_vote_is_decided_where_no_sequence_of_votes_changes_the_winner(n: int) -> None:
    """By brute force: all votes so far, and all that may follow, one of them for an answer that is new."""
    for cast in range(n + 1):
        for votes in itertools.product(VOTES, repeat=cast):
            futures = itertools.product([*VOTES, "new"], repeat=n - cast)
            winners = {frozenset(_winners([*votes, *future])) for future in futures}
            [alone] = winners if len(winners) == 1 else [frozenset[str]()]
            counts = Counter(vote for vote in votes if vote is not None)
            assert decided(counts.values(), n - cast) == (len(alone) == 1), votes


def _winners(votes: list[str | None]) -> set[str]:
    counts = Counter(vote for vote in votes if vote is not None)
    return {answer for answer, count in counts.items() if count == max(counts.values())}


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 3))
def test_votes_by_value_are_decided_if_full_votes_for_the_second_do_not_suffice(votes: list[float], left: int) -> None:
    ranked = sorted([*votes, 0.0, 0.0], reverse=True)
    if abs(ranked[0] - (ranked[1] + left)) > 1e-6:
        assert decided(votes, left) == (ranked[0] > ranked[1] + left)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 12),
    in_flight=st.integers(1, 9),
    weights=st.sampled_from(["count", "last", "mean"]),
)
async def test_stopping_early_gives_the_same_answer_for_less(seed: int, n: int, in_flight: int, weights: str) -> None:
    table = {"": {"r\n": 0.3, "w\n": 0.7}, "r\n": {"a\n": 0.8, "none\n": 0.2}, "w\n": uniform("b\n", "c\n")}
    values = {"r\na\n": 0.9, "w\nb\n": 0.8, "w\nc\n": 0.5}
    poll = Poll(dict.fromkeys(["r\na\n", "r\nnone\n", "w\nb\n", "w\nc\n"], 0.0))
    options = {"n": n, "in_flight": in_flight, "weights": weights}
    whole = await run_search_async(poll, TreeBackend(table, values), "self_consistency", seed=seed, **options, **ALL)
    backend = TreeBackend(table, values)
    early = await run_search_async(poll, backend, "self_consistency", seed=seed, **options)
    assert early.answer == whole.answer
    assert early.tokens <= whole.tokens
    assert early.stop_reason == ("decided" if early.tokens < whole.tokens else "exhausted")
    assert (backend.held, backend.running) == ([], 0)


async def test_a_lead_that_cannot_be_overtaken_ends_the_sampling() -> None:
    """All say the same: of 9 samples, 5 decide; of 10, 6 do."""
    for n, drawn in ((9, 5), (10, 6), (1, 1), (2, 2)):
        backend = TreeBackend({"": {"a\n": 1.0}}, {})
        result = await run_search_async(Poll({"a\n": 0.5}), backend, "self_consistency", n=n, in_flight=1)
        assert (result.answer, result.expansions) == ("a", drawn)
        assert result.stop_reason == ("decided" if drawn < n else "exhausted")


async def test_samples_are_released_as_they_end() -> None:
    backend = Watched(binary(4), {})
    await run_search_async(Poll(dict.fromkeys(leaves(4), 0.0)), backend, "self_consistency", n=50, in_flight=3)
    assert backend.most_running == 3
    assert backend.most_held <= 1 + (3 + 3) * 4, "those in flight, and those just back"


@pytest.mark.parametrize("weights", ["last", "min", "prod", "mean"])
async def test_votes_by_value_need_a_head(weights: str) -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match=rf"weights='{weights}': the model has no value head"):
        await run_search_async(Poll({}), backend, "self_consistency", weights=weights)
    assert (backend.held, backend.running) == ([], 0)


async def test_votes_by_value_end_to_end() -> None:
    """The rare answer is the better one by value."""
    table = {"": {"r\n": 0.3, "w\n": 0.7}, "r\n": {"a\n": 1.0}, "w\n": {"b\n": 1.0}}
    backend = TreeBackend(table, {"r\n": 0.9, "r\na\n": 0.9, "w\n": 0.1, "w\nb\n": 0.1})
    poll = Poll({"r\na\n": 1.0, "w\nb\n": 0.0})
    result = await run_search_async(poll, backend, "self_consistency", n=40, weights="prod")
    assert result.answer == "a"


@pytest.mark.parametrize("tokens", [1, 7, 50])
@pytest.mark.parametrize("in_flight", [1, 3, 16])
async def test_no_token_beyond_the_budget(tokens: int, in_flight: int) -> None:
    backend = TreeBackend(binary(3), {})
    puzzle = Poll(dict.fromkeys(leaves(3), 0.0))
    budget = Budget(tokens=tokens)
    result = await run_search_async(puzzle, backend, "self_consistency", budget, n=99, in_flight=in_flight)
    assert result.tokens == backend.decoded == tokens
    assert (result.stop_reason, backend.held) == ("tokens", [])


async def test_a_full_context_ends_a_sample() -> None:
    backend = TreeBackend(binary(3), {}, failures={1: ContextOverflow(100, 90)})
    puzzle = Poll(dict.fromkeys(leaves(3), 0.0))
    result = await run_search_async(puzzle, backend, "self_consistency", n=2, in_flight=1)
    assert (result.text in leaves(3), result.stop_reason, backend.held) == (True, "exhausted", [])


async def test_a_prompt_that_is_its_own_answer_costs_nothing() -> None:
    backend = TreeBackend({"": uniform("a\n")}, {})
    result = await run_search_async(Poll({"": 1.0}), backend, "self_consistency")
    assert (result.solved, result.tokens, backend.calls) == (True, 0, [])


@given(seed=st.integers(0, 1000), in_flight=st.integers(1, 9))
async def test_a_search_replays(seed: int, in_flight: int) -> None:
    puzzle = Poll(dict.fromkeys(leaves(3), 0.0))
    runs = []
    for _ in range(2):
        backend = TreeBackend(binary(3), {})
        result = await run_search_async(
            puzzle, backend, "self_consistency", seed=seed, n=8, in_flight=in_flight, weights="mean"
        )
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls))
    assert runs[0] == runs[1]


async def test_samples_do_not_depend_on_how_many_are_in_flight() -> None:
    texts = []
    for in_flight in (1, 5, 64):
        backend = TreeBackend(binary(3), {})
        session = Session(Poll(dict.fromkeys(leaves(3), 0.0)), backend, Budget(tokens=1000), 3)
        search = SelfConsistency(session, SelfConsistencyOptions(n=20, in_flight=in_flight))
        await session.open()
        await search.run()
        await session.close()
        texts.append([chain.end.text for chain in search._chains])
    assert texts[0] == texts[1] == texts[2]


async def test_cancelled_midway_it_tells_what_it_had() -> None:
    backend = TreeBackend(binary(3), {})
    session = Session(Poll(dict.fromkeys(leaves(3), 0.0)), backend, Budget(tokens=1000), 3)
    search = SelfConsistency(session, SelfConsistencyOptions(n=20, in_flight=2))
    await session.open()
    running = asyncio.create_task(search.run())
    for _ in range(30):
        best = search.best()
        assert best is not None
        assert search.nodes >= 1
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await session.close()
    assert best.text in leaves(3)
    assert (backend.held, backend.running) == ([], 0)

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dendrite.errors import ContextOverflow
from dendrite.search.backend import Branch
from dendrite.search.budget import Budget
from dendrite.search.events import ExpansionDone, SearchEvent, TerminalFound
from dendrite.search.expansion import Expansion
from dendrite.search.flights import Flights
from dendrite.search.session import Session
from dendrite.search.thought import Thought
from dendrite.search.trace import Trace
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary, uniform


def branch(text: str, finish_reason: str = "stop") -> Branch:
    return Branch("node", (1, 2), text, (-0.5, -1.0), 0.25, finish_reason)


def judged(session: Session, parent: Thought, branch: Branch) -> Thought:
    [thought] = session.take(parent, Expansion((session.judge(parent, branch, branch.value),)))
    return thought


async def opened(
    backend: TreeBackend, puzzle: Puzzle, budget: Budget, events: list[SearchEvent] | None = None
) -> Session:
    session = Session(puzzle, backend, budget, 3, events.append if events is not None else None)
    await session.open()
    return session


class TestJudge:
    session = Session(Puzzle({"x\na\n": 0.5, "x\nend": 1.0}, depth=3), TreeBackend({}), Budget(tokens=1), 0)
    parent = Thought(7, "x\n", "x\n", 1)

    def test_a_thought_holds_its_path_and_the_sum_of_its_logprobs(self) -> None:
        thought = judged(self.session, self.parent, branch("b\n"))
        assert (thought.text, thought.step, thought.depth) == ("x\nb\n", "b\n", 2)
        assert (thought.logprob, thought.value, thought.reward) == (-1.5, 0.25, None)
        assert not thought.terminal

    def test_the_task_says_what_is_terminal(self) -> None:
        thought = judged(self.session, self.parent, branch("a\n"))
        assert (thought.terminal, thought.reward, thought.solved) == (True, 0.5, False)

    def test_the_end_of_the_sequence_is_terminal(self) -> None:
        assert judged(self.session, self.parent, branch("oops")).reward == 0.0
        assert judged(self.session, self.parent, branch("end")).solved

    def test_a_thought_cut_at_its_length_goes_on(self) -> None:
        assert not judged(self.session, self.parent, branch("oops", "length")).terminal

    def test_the_greatest_depth_is_terminal(self) -> None:
        deep = Thought(8, "x\nb\n", "b\n", 2)
        assert judged(self.session, deep, branch("c\n")).reward == 0.0


async def test_flights_land_as_they_return_in_the_order_they_were_started() -> None:
    backend = TreeBackend({"": {"a\n": 1.0}, "a\n": uniform("long\n"), "long\n": {}})
    session = await opened(backend, Puzzle({}), Budget(tokens=1000))
    async with Flights[str](session, temperature=1.0) as flights:
        assert flights.start("first", session.root, 2, (), 0) == 2
        [landing] = await flights.landed()
        assert (landing.owner, landing.asked, [t.step for t in landing.thoughts]) == ("first", 2, ["a\n", "a\n"])
        child = landing.thoughts[0]
        for owner, parent in (("slow", child), ("quick", session.root), ("quicker", session.root)):
            flights.start(owner, parent, 1, (), 0)
        assert [landing.owner for landing in await flights.landed()] == ["quick", "quicker"]
        assert len(flights) == 1
        assert [landing.owner for landing in await flights.landed()] == ["slow"]
    assert flights.cancelled == []
    assert session.meter.tokens == backend.decoded == 2 * 2 + 2 * 2 + 5


async def test_leaving_cancels_what_is_in_flight_and_gives_its_budget_back() -> None:
    backend = TreeBackend(binary(1), delay=60)
    session = await opened(backend, Puzzle({}), Budget(tokens=100))
    async with Flights[str](session, temperature=1.0) as flights:
        flights.start("one", session.root, 3, (), 0)
        flights.start("two", session.root, 1, (), 1)
        await asyncio.sleep(0.01)
        assert backend.running == 4
    assert flights.cancelled == [("one", 3), ("two", 1)]
    assert (backend.running, backend.held, session.meter.tokens) == (0, [""], 0)
    assert session.meter.grant(12, 8) is not None


async def test_an_error_is_raised_and_its_flight_counts_as_cancelled() -> None:
    backend = TreeBackend(binary(1), failures={1: RuntimeError("broken")})
    session = await opened(backend, Puzzle({}), Budget(tokens=100))
    flights = Flights[str](session, temperature=1.0)
    async with flights:
        flights.start("one", session.root, 1, (), 0)
        flights.start("two", session.root, 1, (), 1)
        with pytest.raises(RuntimeError, match="broken"):
            await flights.landed()
    assert flights.cancelled == [("one", 1), ("two", 1)]
    assert backend.held == ["", "a\n"] or backend.held == ["", "b\n"], "the root's release takes the rest"


async def test_a_full_context_returns_no_thoughts() -> None:
    backend = TreeBackend(binary(1), failures={0: ContextOverflow(11, 10)})
    session = await opened(backend, Puzzle({}), Budget(tokens=100))
    async with Flights[str](session, temperature=1.0) as flights:
        flights.start("one", session.root, 2, (), 0)
        [landing] = await flights.landed()
    assert (landing.asked, landing.thoughts) == (2, [])


async def test_what_is_discarded_is_released_before_the_next_wait() -> None:
    backend = TreeBackend(binary(2))
    session = await opened(backend, Puzzle({}), Budget(tokens=100))
    async with Flights[str](session, temperature=1.0) as flights:
        flights.start("one", session.root, 1, (), 0)
        [landing] = await flights.landed()
        session.discard(landing.thoughts[0])
        assert len(backend.held) == 2
        flights.start("two", session.root, 1, (), 1)
        await flights.landed()
    assert len(backend.held) == 2
    await session.close()
    assert backend.held == []


async def test_events_tell_of_ends_and_expansions() -> None:
    events: list[SearchEvent] = []
    session = await opened(TreeBackend({}), Puzzle({}), Budget(tokens=100), events)
    async with Flights[str](session, temperature=1.0) as flights:
        flights.start("one", session.root, 2, (), 0)
        await flights.landed()
    assert events == [TerminalFound("", 0.0), TerminalFound("", 0.0), ExpansionDone(1, 2)]


async def test_a_prompt_may_be_terminal_itself() -> None:
    session = await opened(TreeBackend({}), Puzzle({"": 1.0}), Budget(tokens=1))
    assert session.root.solved


async def test_no_root_is_left_behind_by_an_end_while_its_prompt_is_split_into_tokens(tmp_path: Path) -> None:
    class Slow(TreeBackend):
        async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
            await asyncio.sleep(60)
            return await super().tokenize(text, special=special)

    backend = Slow({})
    with Trace(tmp_path / "trace.jsonl") as trace:
        session = Session(Puzzle({}), backend, Budget(tokens=1), 0, trace=trace)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await session.open()
        await session.close()
    assert backend.held == []

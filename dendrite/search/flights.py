"""The expansions that a search has in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from dendrite.config import Continuation, SamplingParams
from dendrite.errors import TraceError
from dendrite.search.budget import Grant
from dendrite.search.events import ExpansionDone
from dendrite.search.expansion import Expansion
from dendrite.search.seeds import derive_seed
from dendrite.search.session import Session
from dendrite.search.thought import Thought
from dendrite.search.trace import Recorded

Owner = TypeVar("Owner")


@dataclass(slots=True, eq=False)
class _Flight(Generic[Owner]):
    owner: Owner
    parent: Thought
    grant: Grant
    params: SamplingParams
    work: asyncio.Task[Expansion] | None = None
    """None while what comes of it is on record, or may be."""


@dataclass(frozen=True, slots=True)
class Landing(Generic[Owner]):
    """An expansion that has returned: whom it was for, how many children were asked for, and those that came.

    There are none if the path had no room left in the model's context, or the task lists no more actions.
    """

    owner: Owner
    asked: int
    thoughts: list[Thought]


class Flights(Generic[Owner]):
    """The expansions in flight, each on behalf of some owner. Leaving the context cancels what is left.

    Completion-driven: `landed` returns as soon as any expansion has returned, and gives those that have in the order in
    which they were started, so that a search replays exactly on a backend that does. In an ordered session it waits for
    the one that was started first, whatever else has returned, so that a search does not depend on timing at all. Where
    the session has the record of an earlier run, expansions return as they did then; those that had not returned start
    anew once the record ends.
    """

    def __init__(self, session: Session, temperature: float) -> None:
        self._session = session
        self._temperature = temperature
        self._flights: dict[int, _Flight[Owner]] = {}
        self.cancelled: list[tuple[Owner, int]] = []
        """Owners of the expansions that never returned, with the children asked for; filled on leaving."""

    def __len__(self) -> int:
        return len(self._flights)

    async def __aenter__(self) -> Flights[Owner]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._call_off(list(self._flights), self._session.meter.cancel)

    async def cancel(self, calls: Iterable[int]) -> None:
        """Cancel expansions by the numbers that `in_flight` gives, while the search goes on.

        Their owners are added to `cancelled`, and what they were granted is forfeited.
        """
        await self._call_off(calls, self._session.meter.forfeit)

    async def _call_off(self, calls: Iterable[int], give_up: Callable[[Grant], None]) -> None:
        flights = {call: self._flights.pop(call) for call in calls}
        works = [flight.work for flight in flights.values() if flight.work is not None]
        for work in works:
            work.cancel()
        try:
            for outcome in await asyncio.gather(*works, return_exceptions=True):
                if isinstance(outcome, Expansion):  # it had returned, and nobody had looked
                    self._session.abandon(outcome)
        finally:
            for call, flight in flights.items():
                give_up(flight.grant)
                self._session.trace.write("cancelled", call=call)
                self.cancelled.append((flight.owner, flight.grant.children))

    @property
    def in_flight(self) -> list[tuple[int, Owner]]:
        """The numbers of the expansions in flight, and their owners, in the order started."""
        return [(call, flight.owner) for call, flight in self._flights.items()]

    def start(
        self,
        owner: Owner,
        parent: Thought,
        children: int,
        path: tuple[int, ...],
        draw: int,
        *,
        greedy: bool = False,
        without: Iterable[Thought] = (),
    ) -> int:
        """Expand `parent` as far as the budget allows, and return the number of children asked for.

        0 means that the budget has no room now; if nothing is in flight, it never will. `path` and `draw` key
        the sampling seed (see `derive_seed`). `greedy` decodes the most likely tokens, whatever the temperature.
        The thoughts of `without` are not drawn again.

        Raises:
            TraceError: the record of an earlier run has another expansion here.
        """
        session, trace = self._session, self._session.trace
        grant = session.meter.grant(children, session.task.split.max_tokens)
        if grant is None:
            return 0
        seed = derive_seed(session.seed, path, draw)
        params = SamplingParams(
            max_tokens=grant.tokens,
            temperature=0.0 if greedy else self._temperature,
            stop=session.task.split.stop,
            without=tuple(Continuation(tokens=each.tokens, logprobs=each.logprobs) for each in without),
            grammar=session.task.grammar,
            grammar_tokens=None if session.task.grammar is None else len(parent.path_tokens),
            seed=seed,
        )
        call = session.next_call()
        flight = self._flights[call] = _Flight(owner, parent, grant, params)
        if trace.replaying:
            trace.check_call(call, parent.id, grant.children, seed)
        if trace.replaying or trace.replay_only:
            return grant.children
        trace.write(
            "expand",
            call=call,
            node=parent.id,
            n=grant.children,
            max_tokens=grant.tokens,
            temperature=params.temperature,
            seed=seed,
        )
        self._launch(flight)
        return grant.children

    def _launch(self, flight: _Flight[Owner]) -> None:
        flight.work = asyncio.create_task(self._session.expand(flight.parent, flight.grant.children, flight.params))

    async def landed(self) -> list[Landing[Owner]]:
        """Wait for the next expansions to return, and take them out.

        Raises:
            Exception: Whatever the backend raised for one of them, `ContextOverflow` aside.
            TraceError: The record of an earlier run doesn't fit this search.
        """
        await self._session.flush()
        if self._session.trace.replaying:
            landings = [self._replay(recorded) for recorded in self._session.trace.next_batch()]
            self._session.trace.batch_taken()
            return landings
        works = {call: self._work(flight) for call, flight in self._flights.items()}
        awaited = {min(works): works[min(works)]} if self._session.ordered else works
        await asyncio.wait(awaited.values(), return_when=asyncio.FIRST_COMPLETED)
        done = {call: work for call, work in awaited.items() if work.done()}
        for work in done.values():
            if (error := work.exception()) is not None:
                raise error
        batch, of = self._session.trace.begin_batch(), len(done)
        return [self._land(call, work.result(), batch=batch, of=of) for call, work in done.items()]

    def _work(self, flight: _Flight[Owner]) -> asyncio.Task[Expansion]:
        """What an expansion waits for; begun now if the record has left it open."""
        if flight.work is None:
            self._session.trace.check_live()
            self._launch(flight)
        assert flight.work is not None
        return flight.work

    def _replay(self, recorded: Recorded) -> Landing[Owner]:
        if recorded.call not in self._flights:
            raise TraceError(
                self._session.trace.path, None, f"expansion {recorded.call} returned before it was started"
            )
        return self._land(recorded.call, recorded.expansion)

    def _land(self, call: int, expansion: Expansion, **batch: Any) -> Landing[Owner]:
        flight, session = self._flights.pop(call), self._session
        session.meter.settle(flight.grant, expansion.tokens, expansion.reward_calls)
        thoughts = session.take(flight.parent, expansion, call=call, **batch)
        session.emit(ExpansionDone(session.meter.expansions, session.meter.tokens))
        return Landing(flight.owner, flight.grant.children, thoughts)

"""One search under way: its task, backend and budget, and the expansions it has in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeAlias, TypeVar

from dendrite.config import Continuation, SamplingParams
from dendrite.errors import ContextOverflow
from dendrite.search.backend import Backend, Branch, NodeRef
from dendrite.search.budget import Budget, Grant, Meter
from dendrite.search.seeds import derive_seed
from dendrite.search.task import Task

SOLVED = 1.0
"""The reward of a solved task."""

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class ExpansionDone:
    """An expansion has returned; the totals of the search so far."""

    expansions: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TerminalFound:
    """A path has come to its end."""

    text: str
    reward: float


SearchEvent: TypeAlias = ExpansionDone | TerminalFound


@dataclass(frozen=True, slots=True, eq=False)
class Thought:
    """A node of the search tree: one thought (a line, say), and the path that ends with it.

    `text` is the whole path after the prompt, `step` the thought alone, `path` the child indices from the
    root. `logprobs` are the natural logs of the model's probabilities of `tokens` after the parent, at
    temperature 1. `reward` is the task's; None if the path is not terminal, so that it may be expanded further. A
    path is terminal by the task's rule, at the task's greatest depth, or where the model has ended the sequence.
    """

    node: NodeRef
    text: str = ""
    step: str = ""
    depth: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    value: float | None = None
    reward: float | None = None

    @property
    def logprob(self) -> float:
        """Natural log of the model's probability of the whole thought."""
        return sum(self.logprobs)

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self.reward is not None

    @property
    def solved(self) -> bool:
        """Whether this is a full solution."""
        return self.reward is not None and self.reward >= SOLVED


class Session:
    """What all algorithms share: the root, the meter, the judging of thoughts, and the release of nodes."""

    def __init__(
        self,
        task: Task,
        backend: Backend,
        budget: Budget,
        seed: int,
        on_event: Callable[[SearchEvent], None] | None = None,
    ) -> None:
        self.task = task
        self.backend = backend
        self.meter = Meter(budget)
        self.seed = seed
        self._on_event = on_event
        self._root: Thought | None = None
        self._discarded: list[tuple[NodeRef, bool]] = []

    @property
    def root(self) -> Thought:
        """The prompt, once `open` has computed it."""
        assert self._root is not None, "the session has not been opened"
        return self._root

    @property
    def start(self) -> Thought | None:
        """The prompt; None until `open` has computed it."""
        return self._root

    async def open(self) -> None:
        """Prefill the prompt."""
        node = await self.backend.prefill(self.task.prompt, seed=self.seed)
        self._root = Thought(node, reward=self.task.reward("") if self.task.is_terminal("") else None)

    async def close(self) -> None:
        """Release the whole tree, even if the task that awaits this is cancelled once more."""
        if self._root is not None:
            await asyncio.shield(asyncio.ensure_future(self.backend.release(self._root.node, subtree=True)))

    def judge(self, parent: Thought, branch: Branch) -> Thought:
        """Make a thought of a branch of `parent`, with the task's reward if its path is terminal."""
        text = parent.text + branch.text
        depth = parent.depth + 1
        ended = branch.finish_reason == "stop" and not any(stop in branch.text for stop in self.task.stop)
        terminal = ended or depth >= self.task.max_depth or self.task.is_terminal(text)
        reward = self.task.reward(text) if terminal else None
        if reward is not None:
            self.emit(TerminalFound(text, reward))
        return Thought(branch.node, text, branch.text, depth, branch.tokens, branch.logprobs, branch.value, reward)

    def emit(self, event: SearchEvent) -> None:
        """Tell whoever watches."""
        if self._on_event is not None:
            self._on_event(event)

    def discard(self, thought: Thought, *, subtree: bool = False) -> None:
        """Give a node up: its KV is not needed any more. Done before the next wait."""
        self._discarded.append((thought.node, subtree))

    async def flush(self) -> None:
        """Release what has been discarded."""
        discarded, self._discarded = self._discarded, []
        for node, subtree in discarded:
            await self.backend.release(node, subtree=subtree)


@dataclass(frozen=True, slots=True, eq=False)
class _Flight(Generic[Owner]):
    owner: Owner
    parent: Thought
    grant: Grant


@dataclass(frozen=True, slots=True)
class Landing(Generic[Owner]):
    """An expansion that has returned: whom it was for, how many children were asked for, and those that came.

    There are none if the path had no room left in the model's context.
    """

    owner: Owner
    asked: int
    thoughts: list[Thought]


class Flights(Generic[Owner]):
    """The expansions in flight, each on behalf of some owner. Leaving the context cancels what is left.

    Completion-driven: `landed` returns as soon as any expansion has returned, and gives those that have in
    the order in which they were started, so that a search replays exactly on a backend that does.
    """

    def __init__(self, session: Session, temperature: float) -> None:
        self._session = session
        self._temperature = temperature
        self._flights: dict[asyncio.Task[list[Branch]], _Flight[Owner]] = {}
        self.cancelled: list[tuple[Owner, int]] = []
        """Owners of the expansions that never returned, with the children asked for; filled on leaving."""

    def __len__(self) -> int:
        return len(self._flights)

    async def __aenter__(self) -> Flights[Owner]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._flights:
            task.cancel()
        await asyncio.gather(*self._flights, return_exceptions=True)
        for flight in self._flights.values():
            self._session.meter.cancel(flight.grant)
            self.cancelled.append((flight.owner, flight.grant.children))
        self._flights.clear()

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
        """
        session = self._session
        grant = session.meter.grant(children, session.task.max_step_tokens)
        if grant is None:
            return 0
        params = SamplingParams(
            max_tokens=grant.tokens,
            temperature=0.0 if greedy else self._temperature,
            stop=session.task.stop,
            without=tuple(Continuation(tokens=each.tokens, logprobs=each.logprobs) for each in without),
            seed=derive_seed(session.seed, path, draw),
        )
        call = session.backend.expand(parent.node, grant.children, params)
        self._flights[asyncio.create_task(call)] = _Flight(owner, parent, grant)
        return grant.children

    async def landed(self) -> list[Landing[Owner]]:
        """Wait for the next expansions to return, and take them out.

        Raises:
            Exception: Whatever the backend raised for one of them, `ContextOverflow` aside.
        """
        await self._session.flush()
        await asyncio.wait(self._flights, return_when=asyncio.FIRST_COMPLETED)
        done = [task for task in self._flights if task.done()]
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, ContextOverflow):
                raise error
        return [self._land(task) for task in done]

    def _land(self, task: asyncio.Task[list[Branch]]) -> Landing[Owner]:
        flight = self._flights.pop(task)
        branches = [] if task.exception() is not None else task.result()
        meter = self._session.meter
        meter.settle(flight.grant, sum(len(branch.tokens) for branch in branches))
        thoughts = [self._session.judge(flight.parent, branch) for branch in branches]
        self._session.emit(ExpansionDone(meter.expansions, meter.tokens))
        return Landing(flight.owner, flight.grant.children, thoughts)

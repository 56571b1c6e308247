"""Reflections: where an attempt has failed, the model is asked what went wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dendrite.config import SamplingParams
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.events import ExpansionDone, SearchEvent
from dendrite.search.expansion import Expansion
from dendrite.search.flights import Flights
from dendrite.search.session import Session
from dendrite.search.task import Split, Task
from dendrite.search.thought import Thought

_SEEDS = -2
"""Begins the paths that key the seeds of reflections; no child index is negative."""


@dataclass(frozen=True, slots=True)
class _Answer(Task):
    """One text of at most `tokens` tokens after a question, which no rule judges: its reward is never looked at."""

    prompt: str = ""
    tokens: int = 1

    @property
    def split(self) -> Split:
        return Split(self.tokens, stop=())

    @property
    def max_depth(self) -> int:
        return 1

    @property
    def oracle(self) -> bool:
        return True

    def is_terminal(self, text: str) -> bool:
        return False

    def reward(self, text: str) -> float:
        return 0.0


class Reflecting(Session):
    """A session's own questions about the ends of its paths.

    It is the same search, with the same budget, trace and nodes, so that a reflection is paid for, recorded and
    released as all else is. The question is appended to the end's own KV, and the reflection is a child of the end: one
    that neither the task nor the value source judges, and that nothing follows.
    """

    def __init__(self, session: Session, question: Callable[[str], str], max_tokens: int) -> None:
        """Make ready to ask.

        Args:
            session: Of the search.
            question: What to ask after a finished text.
            max_tokens: Of a reflection.
        """
        task = _Answer(session.task.prompt, max_tokens)
        super().__init__(task, session.backend, session.budget, session.seed, trace=session.trace)
        self.meter = session.meter
        self._holdings = session._holdings
        self._prompts = session._prompts
        self._session = session
        self._question = question

    async def reflect(self, ends: Sequence[Thought], first: int, temperature: float) -> list[str]:
        """Ask about ends of paths, whose nodes must be held, side by side.

        Args:
            ends: The ends, numbered from `first` on; the numbers key the sampling seeds.
            first: How many ends have been asked about before.
            temperature: Of the answers.

        Returns:
            The answers, stripped, in the order of `ends`. Those are missing that the budget or the model's context had
            no room for, or that say nothing.

        Raises:
            InvalidArgument: A question is empty.
        """
        await self._session.flush()
        waiting = deque(enumerate(ends, first))
        answers: dict[int, str] = {}
        async with Flights[int](self, temperature) as flights:
            while True:
                while waiting and flights.start(waiting[0][0], waiting[0][1], 1, (_SEEDS, waiting[0][0]), 0):
                    waiting.popleft()
                if not len(flights):
                    break
                for landing in await flights.landed():
                    for thought in landing.thoughts:
                        answers[landing.owner] = thought.step.strip()
                        self.discard(thought)
        await self.flush()
        return [answers[number] for number in sorted(answers) if answers[number]]

    async def expand(self, parent: Thought, n: int, params: SamplingParams) -> Expansion:
        """Ask about `parent`, and have `n` answers decoded; none if the model's context has no room for one."""
        question = self._question(parent.text)
        if not question:
            raise InvalidArgument("reflect", question, "a question must not be empty")
        tokens = await self.backend.tokenize(question, special=False)
        try:
            [asked] = await self.backend.append(await self._node(parent), [tokens])
            try:
                branches = await self.backend.expand(asked.node, n, params)
            finally:
                await self.backend.release(asked.node)
        except ContextOverflow:
            return Expansion()
        held = tuple(replace(branch, pages=branch.pages + asked.pages) for branch in branches)
        return Expansion(tuple(self.judge(parent, branch, branch.value) for branch in held))

    def next_call(self) -> int:
        """Number an expansion among all those of the search."""
        return self._session.next_call()

    def _next_thought(self) -> int:
        return self._session._next_thought()

    def emit(self, event: SearchEvent) -> None:
        """Tell of expansions; a reflection is no end of a path."""
        if isinstance(event, ExpansionDone):
            self._session.emit(event)

"""Running a search again from its trace alone: no model, no task, the same tree and the same result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dendrite.config import SamplingParams
from dendrite.errors import InvalidArgument, TraceError
from dendrite.search.backend import Backend, BackendStats, Branch, NodeRef
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import conduct, parse_algorithm
from dendrite.search.session import Session
from dendrite.search.task import Split, Task
from dendrite.search.trace import Event, Trace, read_lines
from dendrite.search.values import Candidate


@dataclass(frozen=True, slots=True)
class _Recorded(Task):
    """What is on record of a task. How a thought was judged is on record with the thought."""

    title: str
    question: str
    bounds: Split
    depth: int
    answers_known: bool
    over: bool
    rewards: dict[str, float]
    answers: dict[str, str | None]

    @property
    def name(self) -> str:
        return self.title

    @property
    def prompt(self) -> str:
        return self.question

    @property
    def split(self) -> Split:
        return self.bounds

    @property
    def max_depth(self) -> int:
        return self.depth

    @property
    def oracle(self) -> bool:
        return self.answers_known

    def is_terminal(self, text: str) -> bool:
        return not text and self.over

    def reward(self, text: str) -> float:
        return self.rewards.get(text, 0.0)

    def answer(self, text: str) -> str | None:
        return self.answers.get(text)


def _task(path: Path, events: Sequence[Event]) -> _Recorded:
    said = events[0]["task"]
    texts: dict[int, str] = {}
    rewards: dict[str, float] = {}
    answers: dict[str, str | None] = {}
    for event in events:
        if event["event"] == "root":
            texts[event["node"]] = ""
        for child in event.get("children", ()):
            text = texts[child["node"]] = texts[event["node"]] + child["text"]
            if child["ended"]:
                rewards[text], answers[text] = child["reward"] or 0.0, child.get("answer")
        if event["event"] == "result":
            rewards[event["text"]], answers[event["text"]] = event["reward"], event["answer"]
    return _Recorded(
        title=said["name"],
        question=said["prompt"],
        bounds=Split(said["max_tokens"], tuple(said["stop"])),
        depth=said["max_depth"],
        answers_known=said["oracle"],
        over=events[1]["ended"],
        rewards=rewards,
        answers=answers,
    )


@dataclass(frozen=True, slots=True)
class _RecordedValues:
    """Values are on record like all else; no call of this source is."""

    counted: bool

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        raise InvalidArgument("trace", len(candidates), "a replay has no value source")


@dataclass(frozen=True, slots=True)
class _NoBackend:
    """What a replay has in place of an engine: all that it is asked for is on record."""

    page_tokens: int
    page_bytes: int

    async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        raise InvalidArgument("trace", text[:50], "a replay has no tokenizer")

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> NodeRef:
        raise InvalidArgument("trace", prompt[:50], "a replay has no model")

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        raise InvalidArgument("trace", node, "a replay has no model")

    async def append(self, node: NodeRef, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        raise InvalidArgument("trace", node, "a replay has no model")

    async def score(self, node: NodeRef, tokens: Sequence[int]) -> list[float]:
        raise InvalidArgument("trace", node, "a replay has no model")

    async def value(self, node: NodeRef) -> float | None:
        raise InvalidArgument("trace", node, "a replay has no model")

    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        """There is nothing to release."""

    async def stats(self) -> BackendStats:
        return BackendStats(0, 0, 0, 0, 0, 0, 0.0, self.page_tokens, self.page_bytes)


async def replay(path: Path) -> SearchResult:
    """Run the search of a trace again, from what is on record, and return its result.

    The algorithm makes every decision anew. One that had not ended gives the best that it had, with the stop reason
    "interrupted".

    Raises:
        TraceError: the file is no trace, or this version of the algorithm would have gone another way.
    """
    with Trace(path, replay_only=True) as trace:
        if trace.header is None:
            raise TraceError(str(path), None, "ends before the prompt was computed: there is nothing to run again")
        events = [event for _, event in read_lines(path)]
        try:
            header = events[0]
            task = _task(path, events)
            kind, options = parse_algorithm(header["algorithm"], header["options"])
            budget = Budget(**header["budget"])
            seed, said = header["seed"], {"oracle": header["oracle"], "ordered": header["ordered"]}
            source = _RecordedValues(header["counted"])
            backend = _NoBackend(events[1].get("page_tokens", 0), events[1].get("page_bytes", 0))
        except (KeyError, TypeError, InvalidArgument) as error:
            raise TraceError(str(path), 1, f"not the header of a search: {error}") from error
        session = Session(task, backend, budget, seed, values=source, trace=trace, **said)
        return await conduct(kind(session, options))

"""One search under way: its task, backend and budget, the thoughts that have come, and what is kept of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from dendrite.config import SamplingParams
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.actions import append_actions
from dendrite.search.backend import Backend, Branch, NodeRef
from dendrite.search.budget import Budget, Meter, Rates
from dendrite.search.events import SearchEvent, TerminalFound
from dendrite.search.expansion import Child, Expansion, check_some_began
from dendrite.search.holdings import Holdings
from dendrite.search.task import Task
from dendrite.search.thought import Thought
from dendrite.search.trace import Trace
from dendrite.search.trace_events import SCHEMA
from dendrite.search.values import Candidate, HeadValues, ValueSource, valued

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Session:
    """What all algorithms share: the root, the meter, the judging of thoughts, and the release of nodes."""

    def __init__(
        self,
        task: Task,
        backend: Backend,
        budget: Budget,
        seed: int,
        on_event: Callable[[SearchEvent], None] | None = None,
        *,
        values: ValueSource | None = None,
        oracle: bool = False,
        ordered: bool = False,
        trace: Trace | None = None,
    ) -> None:
        """Make ready to search.

        Args:
            task: the problem.
            backend: where its tree grows.
            budget: the most to spend.
            seed: base of all sampling seeds.
            on_event: told of what happens.
            values: what unfinished thoughts are worth; None is the value head.
            oracle: show the search rewards that consult a known answer.
            ordered: take in what expansions return in the order in which they were started.
            trace: the event log; None keeps none.
        """
        self.task = task
        self.backend = backend
        self.budget = budget
        self.seed = seed
        self.oracle = oracle
        self.ordered = ordered
        self.trace = trace if trace is not None else Trace()
        self.meter = Meter(budget, self.trace.now)
        self.values = values if values is not None else HeadValues()
        self._sees_rewards = oracle or not task.oracle
        self._on_event = on_event
        self._holdings = Holdings(backend)
        self._root: Thought | None = None
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._thoughts = 0
        self._calls = 0
        self._discarded: list[NodeRef] = []
        self._flushing = asyncio.Lock()

    @property
    def root(self) -> Thought:
        """The prompt, once `open` has computed it."""
        assert self._root is not None, "the session has not been opened"
        return self._root

    @property
    def start(self) -> Thought | None:
        """The prompt; None until `open` has computed it."""
        return self._root

    async def open(self, header: Mapping[str, Any] = _NOTHING) -> None:
        """Prefill the prompt, or take up the record of an earlier run; `header` describes the search in the trace.

        Raises:
            InvalidArgument: the budget limits KV, and the backend doesn't tell the size of its pages.
        """
        if self.trace.prompt(0) is None and self.trace.writing:
            started = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            self.trace.write("search", schema=SCHEMA, started=started, **header)
        if self.budget.kv_bytes is not None:
            stats = await self.backend.stats()
            if not stats.page_bytes:
                raise InvalidArgument("budget.kv_bytes", self.budget.kv_bytes, "this backend has no pages to count")
            self.meter.rates = Rates(stats.page_tokens, stats.page_bytes)
        self.meter.judged = self.values.counted
        self._root = await self.new_root(self.task.prompt)

    async def new_root(self, prompt: str) -> Thought:
        """Prefill a prompt, and return the root of a tree of its own."""
        id = self._next_thought()
        recorded = self.trace.prompt(id)
        pages = 0
        if recorded is not None or self.trace.writing or self.meter.rates.page_tokens:
            self._prompts[id] = tokens = recorded if recorded is not None else await self.backend.tokenize(prompt)
            pages = self.meter.rates.pages(len(tokens))
        # Nothing is waited for between the prefill and the entry: `close` releases what has been entered.
        ref = await self.backend.prefill(prompt, seed=self.seed) if recorded is None else None
        self._holdings.root(id, ref, pages)
        self._note_kv()
        ended = self.task.is_terminal("")
        reward = self.task.reward("") if ended and self._sees_rewards else None
        if recorded is None:
            self.trace.write(
                "root",
                node=id,
                prompt=prompt,
                tokens=self._prompts.get(id),
                ended=ended,
                reward=reward,
                page_tokens=self.meter.rates.page_tokens,
                page_bytes=self.meter.rates.page_bytes,
            )
        return Thought(id, reward=reward, ended=ended)

    async def close(self) -> None:
        """Release the whole tree, and return when that is done, even if the task that awaits this is cancelled."""
        work = asyncio.ensure_future(self._holdings.close())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    # ---------------------------------------------------------------- thoughts

    def take(self, parent: Thought, expansion: Expansion, **fields: Any) -> list[Thought]:
        """Make thoughts of what an expansion of `parent` has returned, and note them; `fields` say which one it was."""
        thoughts = [self._think(parent, child) for child in expansion.children]
        if self.trace.writing:
            told = [self._told(*each) for each in zip(thoughts, expansion.children, strict=True)]
            calls = expansion.reward_calls
            self.trace.write("children", node=parent.id, reward_calls=calls, children=told, **fields)
        return thoughts

    def _told(self, thought: Thought, child: Child) -> dict[str, Any]:
        """A new child as it stands in the trace."""
        branch = child.branch
        return {
            "node": thought.id,
            "text": thought.step,
            "tokens": thought.tokens,
            "logprobs": thought.logprobs,
            "value": thought.value,
            "reward": thought.reward,
            "ended": thought.ended,
            "answer": self.task.answer(thought.text) if thought.ended else None,
            "finish_reason": branch.finish_reason,
            "pages": branch.pages,
            "worker": branch.worker,
        }

    def judge(self, parent: Thought, branch: Branch, value: float | None) -> Child:
        """Judge a new child of `parent`: whether its path has ended, and the task's reward if it has."""
        text = parent.text + branch.text
        ended = self._has_ended(text, parent.depth + 1, branch)
        return Child(branch, value, self.task.reward(text) if ended and self._sees_rewards else None, ended)

    def _think(self, parent: Thought, child: Child) -> Thought:
        branch = child.branch
        thought = Thought(
            id=self._next_thought(),
            text=parent.text + branch.text,
            step=branch.text,
            depth=parent.depth + 1,
            tokens=branch.tokens,
            logprobs=branch.logprobs,
            value=child.value,
            reward=child.reward,
            ended=child.ended,
            parent=parent,
        )
        if thought.ended:
            self.emit(TerminalFound(thought.text, thought.reward))
        self._holdings.child(thought.id, parent.id, branch.node, branch.pages)
        self._note_kv()
        return thought

    def _has_ended(self, text: str, depth: int, branch: Branch) -> bool:
        if branch.finish_reason == "stop" and not any(stop in branch.text for stop in self.task.split.stop):
            return True  # the model has ended the sequence
        if branch.finish_reason == "error":
            return True  # it would fail again
        if depth >= self.task.max_depth or self.task.is_terminal(text):
            return True
        actions = self.task.actions(text)
        return actions is not None and not actions

    def _next_thought(self) -> int:
        self._thoughts += 1
        return self._thoughts - 1

    # ---------------------------------------------------------------- expansions

    def next_call(self) -> int:
        """Number an expansion that is being started."""
        self._calls += 1
        return self._calls - 1

    async def expand(self, parent: Thought, n: int, params: SamplingParams) -> Expansion:
        """Have children of a thought made, and valued. There are none if the model's context has no room for one."""
        if self.budget.kv_bytes is not None:
            await self.flush()  # the room was granted on the strength of it
        try:
            node = await self._node(parent)
            actions = self.task.actions(parent.text)
            if actions is None:
                branches = await self.backend.expand(node, n, params)
            else:
                branches = await append_actions(self.backend, node, actions, n, params, self.task.split)
        except ContextOverflow:
            return Expansion()
        check_some_began(branches)
        children = [self.judge(parent, branch, branch.value) for branch in branches]
        unknown = [child for child in children if child.reward is None]
        calls = len(unknown) if self.values.counted else 0
        try:
            candidates = [Candidate(parent, each.branch, parent.text + each.branch.text) for each in unknown]
            values = dict(zip(unknown, await valued(self.values, self.task, self.backend, candidates), strict=True))
        except BaseException:
            self.abandon(Expansion(tuple(children), calls))
            await self.flush()
            raise
        judged = (replace(child, value=values.get(child, child.value)) for child in children)
        return Expansion(tuple(judged), calls)

    def abandon(self, expansion: Expansion) -> None:
        """Give up what has come of an expansion that nobody waits for any more; what was asked about it was spent."""
        self.meter.reward_calls += expansion.reward_calls
        self._discarded.extend(child.branch.node for child in expansion.children)

    async def _node(self, thought: Thought) -> NodeRef:
        """The node of a thought; rebuilt from its tokens if it is from the record of an earlier run."""
        *_, root = thought.lineage
        prompt = self._prompts.get(root.id, ())
        return await self._holdings.ref(thought.id, lambda: (*prompt, *thought.path_tokens), self.seed)

    # ---------------------------------------------------------------- what others are told

    def emit(self, event: SearchEvent) -> None:
        """Tell whoever watches."""
        if self._on_event is not None:
            self._on_event(event)

    def backed_up(self, thought: Thought, value: float) -> None:
        """Note a completed visit of a thought, which counts for those above it too."""
        self.trace.write("backup", node=thought.id, value=value)

    def root_moved(self, thought: Thought) -> None:
        """Note that the search goes on below this thought alone."""
        self.trace.write("root_moved", node=thought.id)

    def over_memory(self) -> bool:
        """Whether the KV limit, and it alone, keeps the search from another expansion."""
        return self.meter.over_memory(self.task.split.max_tokens)

    # ---------------------------------------------------------------- releases

    def discard(self, thought: Thought, *, subtree: bool = False) -> None:
        """Give a thought's node up: its KV is not needed any more. Done before the next wait."""
        self._discarded.extend(self._holdings.drop(thought.id, subtree=subtree))
        self._note_kv()
        self.trace.write("release", node=thought.id, subtree=subtree)

    async def flush(self) -> None:
        """Release what has been discarded; returns when that is done, whoever has begun it."""
        async with self._flushing:
            discarded, self._discarded = self._discarded, []
            await asyncio.gather(*(self.backend.release(node) for node in discarded))

    def _note_kv(self) -> None:
        self.meter.kv_bytes = self._holdings.pages * self.meter.rates.page_bytes

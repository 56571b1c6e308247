"""Where searches run: their logs of events, their ends, and branches made by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dendrite.config import SamplingParams
from dendrite.search.backend import Backend, Branch
from dendrite.search.expansion import check_some_began
from dendrite.search.result import SearchResult
from dendrite.search.run import conduct, parse_algorithm
from dendrite.search.session import Session
from dendrite.search.task import Task
from dendrite.search.trace import Trace
from dendrite.search.values import value_source
from serve_apps.decoding import choice_seed
from serve_apps.errors import HttpError, not_found
from serve_apps.events import Event, EventLog, Page
from serve_apps.failures import told
from serve_apps.ids import Ids
from serve_apps.ledger import Ledger
from serve_apps.search_schemas import BranchRequest, SearchPlan, SearchResultView, SearchView, Status

MOST_ENDED = 1_024
"""Searches that are kept after their end, with their traces."""
FIRST_BY_HAND = 1_000_000
"""Nodes and calls made by hand are numbered from here, past all that a search makes."""


@dataclass(slots=True)
class _Search:
    id: str
    owner: str
    task: Task
    algorithm: str
    kv_bytes: int
    began: float
    log: EventLog = field(default_factory=EventLog)
    ended: float | None = None
    status: Status = "running"
    result: SearchResult | None = None
    error: str | None = None
    running: asyncio.Task[SearchResult] = field(init=False)
    events: int = 0
    paths: dict[int, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    by_hand: int = 0
    branching: int = 0


class SearchHost:
    """Runs searches on one backend. Implements `serve_apps.search_service.Searches`."""

    def __init__(
        self, backend: Backend, ledger: Ledger, keep_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Host no search yet; one can be looked at for `keep_s` after its end."""
        self._backend, self._ledger, self._keep_s, self._clock = backend, ledger, keep_s, clock
        self._ids = Ids()
        self._searches: dict[str, _Search] = {}

    async def start(self, owner: str, task: Task, plan: SearchPlan) -> SearchView:
        """See `Searches`."""
        self._forget_old()
        kind, options = parse_algorithm(plan.algorithm, plan.options)
        room = self._ledger.room(owner, "kv_bytes")
        if room is not None and room < 1:
            raise HttpError(429, "kv_bytes: the key holds all it may", param="kv_bytes", code="kv_bytes_limit")
        budget = plan.budget.budget(room)
        held = budget.kv_bytes if room is not None and budget.kv_bytes is not None else 0
        search = _Search(self._ids.new("search"), owner, task, plan.algorithm, held, self._clock())
        session = Session(
            task,
            self._backend,
            budget,
            plan.seed,
            values=value_source(plan.values),
            oracle=plan.oracle,
            trace=Trace(listener=partial(self._note, search)),
        )
        algorithm = kind(session, options)
        self._ledger.hold(owner, concurrent_trees=1, kv_bytes=held)
        self._searches[search.id] = search
        search.running = asyncio.create_task(conduct(algorithm))
        # Not at the end of a coroutine, which would do nothing for one that is cancelled before it begins.
        search.running.add_done_callback(partial(self._ended, search, session))
        return self._view(search)

    async def view(self, owner: str, id: str) -> SearchView:
        """See `Searches`."""
        return self._view(self._find(owner, id))

    async def wait(self, owner: str, id: str) -> SearchView:
        """See `Searches`."""
        search = self._find(owner, id)
        await asyncio.wait([search.running])
        return self._view(search)

    async def read(self, owner: str, id: str, after: int, wait_s: float) -> Page:
        """See `Searches`."""
        return await self._find(owner, id).log.read(after, wait_s)

    async def cancel(self, owner: str, id: str) -> SearchView:
        """See `Searches`."""
        search = self._find(owner, id)
        search.running.cancel()
        await asyncio.wait([search.running])
        return self._view(search)

    async def branch(self, owner: str, id: str, node: int, request: BranchRequest) -> list[int]:
        """See `Searches`."""
        search = self._find(owner, id)
        if node not in search.paths:
            raise not_found("node", str(node))
        call = FIRST_BY_HAND + search.by_hand
        search.by_hand += request.n
        params = SamplingParams(
            max_tokens=search.task.split.max_tokens,
            stop=search.task.split.stop,
            temperature=request.temperature,
            seed=choice_seed(request.seed, 0),
        )
        told = {"max_tokens": params.max_tokens, "temperature": params.temperature, "seed": params.seed}
        search.branching += 1
        search.log.reopen()
        self._note(search, {"event": "expand", "call": call, "node": node, "n": request.n, **told})
        try:
            branches = await self._grow(search.paths[node], request.n, params)
            self._ledger.spend(owner, sum(len(branch.tokens) for branch in branches))
            children = [self._child(search, node, call + at, branch) for at, branch in enumerate(branches)]
            landed = {"reward_calls": 0, "batch": None, "of": None, "children": children}
            self._note(search, {"event": "children", "call": call, "node": node, **landed})
        except BaseException:
            self._note(search, {"event": "cancelled", "call": call})
            raise
        finally:
            search.branching -= 1
            self._maybe_end_log(search)
        return [child["node"] for child in children]

    async def aclose(self) -> None:
        """Cancel all searches."""
        running = [search.running for search in self._searches.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # ---------------------------------------------------------------- a search's life

    def _ended(self, search: _Search, session: Session, task: asyncio.Task[SearchResult]) -> None:
        search.ended = self._clock()
        if task.cancelled():
            search.status = "cancelled"
        elif (error := task.exception()) is not None:
            search.status, search.error = "failed", told(error, search.id).message
        else:
            search.status, search.result = "finished", task.result()
        self._ledger.spend(search.owner, session.meter.tokens)
        self._ledger.free(search.owner, concurrent_trees=1, kv_bytes=search.kv_bytes)
        if search.result is None:
            self._note(search, {"event": "stopped", "status": search.status, "error": search.error})
        self._maybe_end_log(search)

    async def _grow(self, path: tuple[int, ...], n: int, params: SamplingParams) -> list[Branch]:
        root = await self._backend.prefill(path)
        try:
            branches = await self._backend.expand(root, n, params)
            check_some_began(branches)
            return branches
        finally:
            await self._backend.release(root, subtree=True)

    def _child(self, search: _Search, parent: int, node: int, branch: Branch) -> dict[str, Any]:
        """A child made by hand as it stands in the trace."""
        text = search.texts[parent] + branch.text
        stopped = any(stop in branch.text for stop in search.task.split.stop)
        ended = search.task.is_terminal(text) or (branch.finish_reason == "stop" and not stopped)
        return {
            "node": node,
            "text": branch.text,
            "tokens": branch.tokens,
            "logprobs": branch.logprobs,
            "value": branch.value,
            "reward": search.task.reward(text) if ended else None,
            "ended": ended,
            "answer": search.task.answer(text) if ended else None,
            "finish_reason": branch.finish_reason,
            "pages": branch.pages,
            "worker": branch.worker,
        }

    def _note(self, search: _Search, event: Event) -> None:
        """Put an event in the log, and take note of the nodes in it."""
        event.setdefault("time", round(self._clock() - search.began, 6))
        search.events += 1
        search.log.add(event)
        if event["event"] == "root":
            search.paths[event["node"]], search.texts[event["node"]] = tuple(event["tokens"]), ""
        for child in event.get("children", ()):
            parent, node = event["node"], child["node"]
            search.paths[node] = (*search.paths[parent], *child["tokens"])
            search.texts[node] = search.texts[parent] + child["text"]

    def _maybe_end_log(self, search: _Search) -> None:
        if search.ended is not None and not search.branching:
            search.log.end()

    def _view(self, search: _Search) -> SearchView:
        end = search.ended if search.ended is not None else self._clock()
        result = SearchResultView(**search.result.to_dict()) if search.result is not None else None
        return SearchView(
            id=search.id,
            status=search.status,
            algorithm=search.algorithm,
            task=search.task.name,
            seconds=end - search.began,
            events=search.events,
            result=result,
            error=search.error,
        )

    def _find(self, owner: str, id: str) -> _Search:
        self._forget_old()
        search = self._searches.get(id)
        if search is None or search.owner != owner:
            raise self._ids.missing("search", id)
        return search

    def _forget_old(self) -> None:
        now = self._clock()
        ended = [each for each in self._searches.values() if each.ended is not None and not each.branching]
        too_many = len(ended) - MOST_ENDED
        for number, search in enumerate(ended):  # in the order in which they began
            if number < too_many or (search.ended is not None and now - search.ended > self._keep_s):
                del self._searches[search.id]

"""Search over a tree of thoughts: algorithms written once against the `Backend` protocol."""

from dendrite.search.backend import Backend, BackendStats, Branch, NodeRef
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import ALGORITHMS, run_search, run_search_async
from dendrite.search.session import ExpansionDone, SearchEvent, TerminalFound
from dendrite.search.task import Task

__all__ = [
    "ALGORITHMS",
    "Backend",
    "BackendStats",
    "Branch",
    "Budget",
    "ExpansionDone",
    "NodeRef",
    "SearchEvent",
    "SearchResult",
    "Task",
    "TerminalFound",
    "run_search",
    "run_search_async",
]

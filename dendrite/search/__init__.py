"""Search over a tree of thoughts: algorithms written once against the `Backend` protocol."""

from dendrite.search.ask_tell import Ask, AskTell
from dendrite.search.backend import Backend, BackendStats, Branch, NodeRef
from dendrite.search.budget import Budget
from dendrite.search.events import ExpansionDone, SearchEvent, TerminalFound
from dendrite.search.policies import AbMctsA, BestFirst, UctPolicy
from dendrite.search.result import SearchResult
from dendrite.search.run import ALGORITHMS, run_search, run_search_async
from dendrite.search.task import Split, Task
from dendrite.search.values import Candidate, JudgeValues, ValueSource

__all__ = [
    "ALGORITHMS",
    "AbMctsA",
    "Ask",
    "AskTell",
    "Backend",
    "BackendStats",
    "BestFirst",
    "Branch",
    "Budget",
    "Candidate",
    "ExpansionDone",
    "JudgeValues",
    "NodeRef",
    "SearchEvent",
    "SearchResult",
    "Split",
    "Task",
    "TerminalFound",
    "UctPolicy",
    "ValueSource",
    "run_search",
    "run_search_async",
]

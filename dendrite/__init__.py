"""Dendrite: a tree of generations that is cheap to fork, and searches that drive it.

Every name of the public API is imported from its module on first use, so that `import dendrite` loads neither
torch nor anything else that is slow to start.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from dendrite import errors
from dendrite.errors import DendriteError

if TYPE_CHECKING:
    from dendrite.config import EngineConfig, SamplingParams
    from dendrite.engine.engine import Engine
    from dendrite.grammar.spec import Grammar
    from dendrite.kv.node import Node
    from dendrite.search import run_search, run_search_async
    from dendrite.search.budget import Budget

    __version__: str

__all__ = [
    "Budget",
    "DendriteError",
    "Engine",
    "EngineConfig",
    "Grammar",
    "Node",
    "SamplingParams",
    "__version__",
    "errors",
    "run_search",
    "run_search_async",
]

_HOME = {
    "Budget": "dendrite.search.budget",
    "Engine": "dendrite.engine.engine",
    "EngineConfig": "dendrite.config",
    "Grammar": "dendrite.grammar.spec",
    "Node": "dendrite.kv.node",
    "SamplingParams": "dendrite.config",
    "run_search": "dendrite.search",
    "run_search_async": "dendrite.search",
}

# A type checker sees the imports above alone, so that it still reports a misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name from its module on first use."""
        if name == "__version__":
            value = _installed_version()
        elif name in _HOME:
            value = getattr(import_module(_HOME[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _installed_version() -> str:
    try:
        return version("dendrite")
    except PackageNotFoundError:  # a checkout on the path that was never installed
        return "0+unknown"

"""Problems that a search can be run on, each with the rule that checks its answers.

`TASKS` holds the kinds that draw problems of their own. Beside them `json_schema.JsonSchema` fills a given schema, and
`custom.load_tasks` makes tasks of a user's own file.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from dendrite.search.task import Task
from dendrite.search.tasks import arithmetic, countdown, game24
from dendrite.search.tasks.arithmetic import Arithmetic
from dendrite.search.tasks.countdown import Countdown, problems
from dendrite.search.tasks.game24 import Game24

TASKS: Mapping[str, Callable[[int, int], Sequence[Task]]] = MappingProxyType(
    {"arithmetic": arithmetic.problems, "countdown": countdown.problems, "game24": game24.problems}
)
"""By kind, what draws `n` distinct problems for a `seed`, both of which it checks."""

__all__ = ["TASKS", "Arithmetic", "Countdown", "Game24", "problems"]

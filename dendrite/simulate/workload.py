"""What a simulated cluster is made of, and what it is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from dendrite.errors import InvalidArgument
from dendrite.limits import check_whole

MOST_WORKERS, MOST_TREES = 100_000, 10_000_000


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed system: `trees` searches under way at all times, each followed by another one when it ends.

    Attributes:
        workers: model workers.
        shards: processes of the tree manager.
        trees: searches.
        expansions: of a search, one after the other.
        children: of an expansion, each decoded to `tokens` tokens.
        tokens: of a child.
        prompt: tokens of a prompt; 0 for none.
        prompts: different prompts. They are asked for by Zipf's law: the i-th one 1 / i times as often as the first.
        cached_prompts: prompts whose KV a worker keeps, the least recently used one going first.
        pause_s: mean time, exponentially distributed, between two searches of one place in the system.
        max_rows: most generations in a batch.

    Raises:
        InvalidArgument: a number is out of range.
    """

    workers: int
    shards: int
    trees: int
    expansions: int = 60
    children: int = 4
    tokens: int = 32
    prompt: int = 2_048
    prompts: int = 10_000
    cached_prompts: int = 256
    pause_s: float = 0.0
    max_rows: int = 256

    def __post_init__(self) -> None:
        most = {"workers": MOST_WORKERS, "trees": MOST_TREES, "prompt": 10**6}
        for name in ("workers", "shards", "trees", "expansions", "children", "tokens", "prompts", "max_rows"):
            check_whole(name, getattr(self, name), 1, most.get(name, 10**6))
        check_whole("prompt", self.prompt, 0, most["prompt"])
        check_whole("cached_prompts", self.cached_prompts, 0, 10**6)
        if not 0 <= self.pause_s < float("inf"):
            raise InvalidArgument("pause_s", self.pause_s, "must be a number of seconds that is not negative")
        if self.children > self.max_rows:
            raise InvalidArgument("children", self.children, f"must be at most max_rows={self.max_rows}")

"""A backend over an explicit, known tree of texts, for tests of the algorithms alone: the model is a table.

A token is a character. Each takes one turn of the event loop (or `delay` seconds), so that expansions in flight
advance side by side as they do in a batch.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from dendrite.config import SamplingParams
from dendrite.errors import NodeReleased
from dendrite.search.backend import BackendStats, Branch, NodeRef
from dendrite.search.task import Split, Task

Table = Mapping[str, Mapping[str, float]]
"""Path after the prompt -> the steps that may follow, with their probabilities. A path not in it ends the sequence."""


@dataclass(frozen=True)
class Puzzle(Task):
    """Rewards by text; a text with a reward is terminal."""

    rewards: Mapping[str, float]
    depth: int = 8
    step_tokens: int = 8
    name: str = "puzzle"
    prompt: str = "?"

    @property
    def split(self) -> Split:
        return Split(self.step_tokens)

    @property
    def max_depth(self) -> int:
        return self.depth

    def is_terminal(self, text: str) -> bool:
        return text in self.rewards

    def reward(self, text: str) -> float:
        return self.rewards.get(text, 0.0)

    def answer(self, text: str) -> str | None:
        return text.strip() if text in self.rewards else None


@dataclass
class Place:
    text: str
    parent: int | None
    children: list[int] = field(default_factory=list)
    released: bool = False


class TreeBackend:
    """Implements `Backend`. Checks that callers keep to the protocol, and counts all that was generated."""

    def __init__(
        self,
        table: Table,
        values: Mapping[str, float] | None = None,
        *,
        delay: float = 0.0,
        failures: Mapping[int, Exception] | None = None,
    ) -> None:
        self.table = table
        self.values = values
        self.delay = delay
        self.failures = dict(failures or {})
        self.places: dict[int, Place] = {}
        self.prompt = "?"
        self.prefilled: list[str] = []
        self.decoded = 0
        self.calls: list[tuple[str, int, SamplingParams]] = []
        self.running = 0
        self.most_running = 0
        self._ids = itertools.count()

    @property
    def held(self) -> list[str]:
        """Texts of the nodes that nobody has released."""
        return [place.text for place in self.places.values() if not place.released]

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> NodeRef:
        await asyncio.sleep(0)
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        self.prefilled.append(text)
        return self._make(text.removeprefix(self.prompt), None)

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        place = self._held(node)
        call = len(self.calls)
        self.calls.append((place.text, n, params))
        kids = [self._make(place.text, node) for _ in range(n)]
        self.running += n
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._decode(kids, params, self.failures.get(call))
        except BaseException:
            for kid in kids:
                await self.release(kid)
            raise
        finally:
            self.running -= n

    async def _decode(self, kids: list[int], params: SamplingParams, failure: Exception | None) -> list[Branch]:
        branches = [self._sample(kid, index, params) for index, kid in enumerate(kids)]
        for tick in range(max(len(branch.tokens) for branch in branches)):
            await asyncio.sleep(self.delay)
            self.decoded += sum(len(branch.tokens) > tick for branch in branches)
            if failure is not None:
                raise failure
        return branches

    def _sample(self, kid: int, index: int, params: SamplingParams) -> Branch:
        place = self.places[kid]
        steps = self.table.get(place.text, {"": 1.0})
        if params.temperature == 0.0:
            step = max(steps, key=lambda text: steps[text])
        else:
            step = Random(f"{params.seed}/{index}").choices(list(steps), list(steps.values()))[0]
        written = step if step.endswith("\n") else step + "\0"  # no stop text: the model ends the sequence
        cut = written[: params.max_tokens]
        place.text += cut.replace("\0", "")
        share = math.log(steps[step]) / len(written)
        value = None if self.values is None else self.values.get(place.text, 0.5)
        return Branch(
            node=kid,
            tokens=tuple(map(ord, cut)),
            text=cut.replace("\0", ""),
            logprobs=(share,) * len(cut),
            value=value,
            finish_reason="stop" if cut == written else "length",
        )

    async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        return tuple(map(ord, text))

    async def append(self, node: NodeRef, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        place = self._held(node)
        await asyncio.sleep(self.delay)
        return [self._written(place, node, "".join(map(chr, tokens))) for tokens in continuations]

    def _written(self, place: Place, node: NodeRef, text: str) -> Branch:
        kid = self._make(place.text + text, node)
        share = math.log(self.table.get(place.text, {}).get(text, 1e-9)) / len(text)
        value = None if self.values is None else self.values.get(place.text + text, 0.5)
        return Branch(kid, tuple(map(ord, text)), text, (share,) * len(text), value, "given")

    async def score(self, node: NodeRef, tokens: Sequence[int]) -> list[float]:
        raise NotImplementedError

    async def value(self, node: NodeRef) -> float | None:
        return None

    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        await asyncio.sleep(0)
        assert isinstance(node, int)
        self.places[node].released = True
        for child in self.places[node].children if subtree else ():
            await self.release(child, subtree=True)

    async def stats(self) -> BackendStats:
        return BackendStats(1, 0, self.decoded, 0, len(self.places) - 1, len(self.held), 0.0)

    def _make(self, text: str, parent: NodeRef | None) -> int:
        key = next(self._ids)
        assert parent is None or isinstance(parent, int)
        self.places[key] = Place(text, parent)
        if parent is not None:
            self.places[parent].children.append(key)
        return key

    def _held(self, node: NodeRef) -> Place:
        assert isinstance(node, int)
        place = self.places[node]
        if place.released:
            raise NodeReleased(0, node)
        return place


def uniform(*steps: str) -> dict[str, float]:
    return {step: 1 / len(steps) for step in steps}


def binary(depth: int) -> dict[str, dict[str, float]]:
    """The table of the full binary tree of lines "a" and "b"."""
    table: dict[str, dict[str, float]] = {}
    paths = [""]
    for _ in range(depth):
        for path in paths:
            table[path] = uniform("a\n", "b\n")
        paths = [path + step for path in paths for step in ("a\n", "b\n")]
    return table


def leaves(depth: int) -> list[str]:
    """The ends of the full binary tree, in order."""
    return ["".join(f"{step}\n" for step in path) for path in itertools.product("ab", repeat=depth)]

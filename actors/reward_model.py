"""An external reward model behind a Ray actor, and the value source that asks it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.reward_options import RewardOptions, RewardStats
from actors.rpc import Handle, call, translate
from dendrite.config import checked
from dendrite.errors import ClusterError
from dendrite.limits import check_positive_seconds, check_whole
from dendrite.search.backend import Backend
from dendrite.search.task import Task
from dendrite.search.values import Candidate

if TYPE_CHECKING:
    from actors.reward_scorer import RewardScorer

REWARD_MODEL = "the reward model"
_MOST_CALLS = 4_096  # under way at once; Ray holds back what is over that


@dataclass(frozen=True, slots=True)
class RewardValues:
    """Values by a reward model, each one of `Budget.reward_calls`: what it makes of the prompt and the text after it.

    Pickles, so that it serves searches in this process and on a cluster's drivers alike. A thought whose text is longer
    than the reward model's context has no value. Values may differ in their last bits with what else is in a batch.
    """

    actor: Handle
    counted: ClassVar[bool] = True

    async def values(self, task: Task, backend: Backend, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """See `ValueSource`.

        Raises:
            ClusterError: the reward model is not alive.
        """
        return await self.score([task.prompt + each.text for each in candidates])

    async def score(self, texts: Sequence[str]) -> list[float | None]:
        """The value of each text, in [0, 1]; None for one that is longer than the model's context."""
        found: list[float | None] = await call(self.actor.score.remote(list(texts)), REWARD_MODEL)
        return found

    async def stats(self) -> RewardStats:
        """Totals so far."""
        stats: RewardStats = await call(self.actor.stats.remote(), REWARD_MODEL)
        return stats

    def close(self) -> None:
        """End the reward model, for all who use it. Idempotent."""
        if ray.is_initialized():  # else `ray.kill` would start one
            with contextlib.suppress(RayError, ValueError):  # it is dead already
                ray.kill(self.actor)


class RewardModel:
    """A sequence classifier behind messages. A Ray actor: calls that come while a batch runs make up the next one."""

    def __init__(self, folder: str, options: RewardOptions, threads: int) -> None:
        self._folder, self._options, self._threads = folder, options, threads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward")
        self._waiting: list[tuple[tuple[int, ...], asyncio.Future[float | None]]] = []
        self._batches: asyncio.Task[None] | None = None

    @staticmethod
    def start(folder: str | Path, *, cpus: int = 1, start_timeout_s: float = 300.0, **settings: Any) -> RewardValues:
        """Start the actor on the Ray that this process is connected to, and wait until it has loaded the model.

        It lives until `RewardValues.close`, or until nobody holds a `RewardValues` of it any more.

        Args:
            folder: a Hugging Face folder with a sequence classifier, which every machine of the cluster must have.
            cpus: CPUs that Ray reserves for it, and its threads.
            start_timeout_s: the longest wait for it to load.
            **settings: fields of `RewardOptions`.

        Raises:
            InvalidArgument: a setting is out of range, or doesn't fit the model.
            ModelError: the model can't be loaded, or is not one that can be used so (see `RewardScorer`).
            ClusterError: there is no connection to Ray, or the actor does not start in time.
        """
        options = checked(RewardOptions, settings)
        check_whole("cpus", cpus, 1)
        check_positive_seconds("start_timeout_s", start_timeout_s)
        if not ray.is_initialized():
            raise ClusterError("a reward model needs a connection to Ray: call ray.init or actors.connect first")
        environment = {"OMP_NUM_THREADS": str(cpus), "OMP_WAIT_POLICY": "passive"}
        kind = ray.remote(RewardModel).options(
            max_concurrency=_MOST_CALLS,
            num_cpus=cpus,
            num_gpus=1 if options.device == "cuda" else 0,
            runtime_env={"env_vars": environment},
        )
        values = RewardValues(kind.remote(str(Path(folder).expanduser().absolute()), options, cpus))
        try:
            ray.get(values.actor.load.remote(), timeout=start_timeout_s)
        except BaseException as error:
            values.close()
            if isinstance(error, GetTimeoutError):
                raise ClusterError(f"{REWARD_MODEL} did not start within {start_timeout_s:g} s") from None
            if isinstance(error, RayError):
                raise translate(error, REWARD_MODEL) from error
            raise
        return values

    async def load(self) -> None:
        """Load the model. Apart from the constructor, so that a typed error reaches the caller.

        Raises:
            ModelError, InvalidArgument: see `RewardScorer`.
        """
        import torch  # here and below: a process that only names this class should not load torch

        from actors.reward_scorer import RewardScorer

        torch.set_num_threads(self._threads)
        self._scorer: RewardScorer = RewardScorer(self._folder, self._options)

    async def score(self, texts: Sequence[str]) -> list[float | None]:
        """The value of each text; see `RewardScorer.score`.

        Raises:
            InvalidArgument: a text has no token.
        """
        loop = asyncio.get_running_loop()
        paths = [self._scorer.encode(text) for text in texts]
        futures = [loop.create_future() for _ in paths]
        self._waiting.extend(zip(paths, futures, strict=True))
        if self._batches is None or self._batches.done():
            self._batches = loop.create_task(self._run_batches())
        return list(await asyncio.gather(*futures))

    async def stats(self) -> RewardStats:
        """Totals so far."""
        return self._scorer.stats

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._options.batch], self._waiting[self._options.batch :]
            try:
                values = await loop.run_in_executor(self._thread, self._scorer.score, [path for path, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # seen: a call tells of its first alone
            else:
                for (_, future), value in zip(batch, values, strict=True):
                    if not future.done():
                        future.set_result(value)

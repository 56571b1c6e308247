"""The reward model's actor: what it scores for searches here and on the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from actors import Cluster
from actors.reward_model import RewardModel, RewardValues
from dendrite import Engine, run_search_async
from dendrite.errors import ClusterError, InvalidArgument, UnsupportedModel
from dendrite.search.budget import Budget
from dendrite.search.tasks.countdown import problems
from tests.actors.reward_folders import Whole, write_classifier

BUDGET = Budget(tokens=4_000, reward_calls=10)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def values(ray_here: None, classifier: Path) -> Iterator[RewardValues]:
    values = RewardModel.start(classifier, batch=4)
    yield values
    values.close()


async def test_concurrent_calls_share_batches(values: RewardValues, classifier: Path) -> None:
    whole = Whole(classifier)
    prompt = "Numbers: 3 7 8 25. Target: 92.\n"
    calls = [[f"{prompt}{first}{second}\n" for second in "ab"] for first in "01234567"]
    before = await values.stats()
    found = await asyncio.gather(*(values.score(texts) for texts in calls))
    for scores, texts in zip(found, calls, strict=True):
        assert scores == pytest.approx([whole.score(text) for text in texts], abs=1e-4)
    after = await values.stats()
    assert after.texts - before.texts == 16
    assert after.tokens_computed - before.tokens_computed == len(prompt) + 8 + 2 * 8 + 2 * 8
    assert after.forwards - before.forwards < 16, "calls are batched"


async def test_a_bad_text_fails_its_own_call_alone(values: RewardValues) -> None:
    good, bad = await asyncio.gather(values.score(["ab"]), values.score(["ab", ""]), return_exceptions=True)
    assert isinstance(good, list)
    assert isinstance(bad, InvalidArgument)
    assert bad.field == "text"
    assert await values.score([]) == []


async def test_a_call_that_is_given_up_leaves_the_model_as_it_was(values: RewardValues) -> None:
    doomed = asyncio.create_task(values.score(["Numbers: " * 20]))
    await asyncio.sleep(0)
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert await values.score(["ab"]) == await values.score(["ab"])


async def test_searches_here_and_on_the_cluster_are_valued_by_it(values: RewardValues, cluster: Cluster) -> None:
    [task] = problems(1, seed=3)
    before = (await values.stats()).texts
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384) as engine:
        here = await run_search_async(task, engine, "mcts", BUDGET, values=values)
        assert engine.stats().pages_held == 0
    between = (await values.stats()).texts
    assert 0 < here.reward_calls <= between - before <= 10
    [there] = [outcome async for outcome in cluster.solve_many([task], "mcts", BUDGET, values=values)]
    assert there.result is not None, there.error
    assert 0 < there.result.reward_calls <= (await values.stats()).texts - between <= 10


async def test_a_model_that_has_died_ends_the_search_with_a_typed_error(ray_here: None, classifier: Path) -> None:
    doomed = RewardModel.start(classifier)
    doomed.close()
    [task] = problems(1, seed=3)
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384) as engine:
        with pytest.raises(ClusterError, match="the reward model is not alive"):
            await run_search_async(task, engine, "mcts", BUDGET, values=doomed)
        assert engine.stats().pages_held == 0
    doomed.close()


def test_what_cannot_be_loaded_is_told_by_type_and_no_actor_stays(ray_here: None, tiny_model: Path) -> None:
    free = ray.available_resources()["CPU"]
    with pytest.raises(UnsupportedModel, match="ForSequenceClassification"):
        RewardModel.start(tiny_model)
    for wrong in ({"batch": 0}, {"cpus": 0}, {"start_timeout_s": 0}, {"colour": 1}, {"device": "tpu"}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            RewardModel.start(tiny_model, **wrong)
    assert _settles(lambda: ray.available_resources()["CPU"] == free)


def _settles(holds: Callable[[], bool]) -> bool:
    """Whether it holds within a few seconds: Ray takes a moment to free what an ended actor had."""
    for _ in range(50):
        if holds():
            return True
        time.sleep(0.1)
    return False

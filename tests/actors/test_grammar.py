"""Grammars on a cluster: they travel with their tokens, and nothing else of them does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from actors import Cluster
from dendrite.config import SamplingParams
from dendrite.errors import GrammarError
from dendrite.grammar import Grammar
from dendrite.search.budget import Budget
from dendrite.search.tasks.json_schema import JsonSchema
from tests.actors.killing import assert_nothing_held, kill_worker

PROMPT = "Numbers: 3 7 8 25. Target: 99.\n"
SCHEMA = {
    "type": "object",
    "properties": {"flag": {"type": "boolean"}, "other": {"type": "boolean"}},
    "required": ["flag", "other"],
    "additionalProperties": False,
}
FLAGS = Grammar(json_schema=SCHEMA, white_space=False)


@pytest.fixture
async def cluster(mortal_cluster: Cluster) -> AsyncIterator[Cluster]:
    await mortal_cluster.worker_stats()  # what an earlier test has killed is back
    yield mortal_cluster
    await assert_nothing_held(mortal_cluster)


async def test_a_document_goes_on_on_another_worker(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT, seed=4)
    [half, whole] = [
        (await cluster.expand(root, 1, SamplingParams(max_tokens=tokens, seed=1, grammar=FLAGS)))[0]
        for tokens in (12, 60)
    ]
    rest = SamplingParams(max_tokens=60, seed=1, grammar=FLAGS)
    expected = await cluster.expand(half.node, 3, rest)
    assert (half.finish_reason, whole.finish_reason) == ("length", "stop")
    await kill_worker(cluster, root.worker)

    again = await cluster.expand(half.node, 3, rest)
    assert {branch.worker for branch in again} == {1 - root.worker}
    assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
    for branch in again:
        assert set(json.loads(half.text + branch.text)) == {"flag", "other"}
        assert len(branch.raw_logprobs) == len(branch.logprobs)
        assert any(raw < logprob for raw, logprob in zip(branch.raw_logprobs, branch.logprobs, strict=True))
    [ended] = await cluster.expand(whole.node, 1, rest)
    assert (ended.text, ended.finish_reason) == ("", "stop"), "nothing follows the document"
    await cluster.release(root, subtree=True)


async def test_what_cannot_be_enforced_is_told_with_its_place(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    tags = Grammar(json_schema={"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}})
    with pytest.raises(GrammarError, match="uniqueItems") as caught:
        await cluster.expand(root, 2, SamplingParams(max_tokens=8, grammar=tags))
    assert caught.value.path == "$.properties.tags"
    await cluster.release(root)


async def test_a_branch_that_fails_fails_alone(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    calls = [SamplingParams(max_tokens=60, seed=1, grammar=FLAGS, grammar_tokens=tokens) for tokens in (3, 0)]
    failed, fine = await asyncio.gather(*(cluster.expand(root, 2, params) for params in calls))
    assert {(branch.finish_reason, type(branch.error)) for branch in failed} == {("error", GrammarError)}
    assert {(branch.finish_reason, branch.error) for branch in fine} == {("stop", None)}
    await cluster.release(root, subtree=True)


async def test_searches_write_valid_documents(cluster: Cluster) -> None:
    tasks = [JsonSchema(SCHEMA, instruction) for instruction in ("Both set.", "None set.")]
    outcomes = [outcome async for outcome in cluster.solve_many(tasks, "best_of_n", Budget(tokens=600))]
    results = [outcome.result for outcome in outcomes]
    assert [result is not None and result.reward for result in results] == [1.0, 1.0]

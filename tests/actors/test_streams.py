"""Generations handed out while they run, over messages: two workers, their manager and a client in this process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from actors.cluster_client import ClusterClient
from actors.exchange import Piece
from actors.model_worker import ModelWorker
from actors.refs import ClusterNode
from dendrite.config import EngineConfig, SamplingParams
from dendrite.errors import Cancelled, ContextOverflow, InvalidArgument, NodeReleased
from dendrite.search.backend import Branch, StreamingBackend
from tests.actors.in_process import cluster_of, lent

PROMPT = list(b"Numbers: 3 7 8 25. Target: 99.\n")
PARAMS = SamplingParams(max_tokens=24, seed=1, ignore_eos=True, top_logprobs=2)
LONG = SamplingParams(max_tokens=300, seed=1, ignore_eos=True)


class Client(ClusterClient):
    """A client that knows its workers."""

    workers: list[ModelWorker]


@pytest.fixture
async def client(tiny_model: Path) -> AsyncIterator[Client]:
    config = EngineConfig(device="cpu", kv_tokens=4_096, debug_checks=True)
    async with cluster_of(tiny_model, workers=2, config=config) as (manager, handles):
        lease = await manager.open_lease.remote()
        made = Client(manager, handles, lease.id)
        made.workers = [handle.actor for handle in handles]  # type: ignore[misc]
        assert isinstance(made, StreamingBackend)
        async with lent(made, manager, lease.id):
            yield made


async def whole(client: ClusterClient, node: ClusterNode, params: SamplingParams, every_s: float = 0.0) -> list[Branch]:
    return [branch async for branch in client.stream(node, params, every_s)]


async def test_a_stream_holds_what_an_expansion_does(client: Client) -> None:
    root = await client.prefill(PROMPT)
    [expected] = await client.expand(root, 1, PARAMS)
    parts = await whole(client, root, PARAMS)
    assert len(parts) > 2
    assert tuple(token for part in parts for token in part.tokens) == expected.tokens
    assert [logprob for part in parts for logprob in part.logprobs] == pytest.approx(expected.logprobs, abs=1e-5)
    assert [len(tops) for part in parts for tops in part.top_logprobs] == [2] * 24
    assert len({part.node for part in parts}) == 1
    last = parts[-1]
    assert (last.finish_reason, last.worker, last.text) == (expected.finish_reason, root.worker, "")
    assert last.value == pytest.approx(expected.value)
    assert isinstance(last.node, ClusterNode)
    assert await client.score(last.node, [1, 2]) == pytest.approx(await client.score(expected.node, [1, 2]), abs=1e-5)
    await client.manager_stats()
    assert await client.lineage(last.node) == (*PROMPT, *expected.tokens)
    await client.release(root, subtree=True)


async def test_tokens_of_many_streams_share_messages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []
    for worker in client.workers:
        answer = worker.exchange

        async def answered(reader: int, message: bytes, answer=answer) -> bytes:  # type: ignore[no-untyped-def]
            given = await answer(reader, message)
            messages.append([news for news in pickle.loads(given) if isinstance(news, Piece)])
            return given  # type: ignore[no-any-return]

        monkeypatch.setattr(worker, "exchange", answered)
    root = await client.prefill(PROMPT)
    each = [PARAMS.model_copy(update={"seed": seed}) for seed in range(20)]
    found = await asyncio.gather(*(whole(client, root, params) for params in each))
    assert 0 < len(messages) < sum(map(len, messages)) / 3
    for params, parts in zip(each, found, strict=True):
        [expected] = await client.expand(root, 1, params)
        assert tuple(token for part in parts for token in part.tokens) == expected.tokens
    await client.release(root, subtree=True)


@pytest.mark.parametrize("after", [1, 2, 5])
async def test_what_a_closed_stream_has_told_of_is_a_node(client: Client, after: int) -> None:
    root = await client.prefill(PROMPT)
    tokens: tuple[int, ...] = ()
    async with aclosing(client.stream(root, LONG, 0.0)) as branches:
        async for branch in branches:
            tokens += branch.tokens
            after -= 1
            if not after:
                break
    [written] = await client.append(root, [tokens])
    expected, found = [await client.expand(node, 1, PARAMS) for node in (written.node, branch.node)]
    assert found[0].tokens == expected[0].tokens
    await client.release(root, subtree=True)


async def test_a_reader_that_leaves_leaves_nothing(client: Client) -> None:
    root = await client.prefill(PROMPT)
    before = (await client.stats()).pages_held
    for delay in (0.0, 0.001, 0.02):
        reading = asyncio.create_task(whole(client, root, LONG))
        await asyncio.sleep(delay)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    async with aclosing(client.stream(root, LONG, 0.0)) as branches:
        first = await anext(branches)
    await client.release(first.node)
    await client.settle()
    workers = await client.worker_stats(fresh=True)
    assert [worker.in_flight for worker in workers] == [0, 0]
    assert sum(worker.engine.pages_held for worker in workers) == before
    await client.release(root, subtree=True)


async def test_a_growing_node_cannot_be_used_but_released(client: Client) -> None:
    root = await client.prefill(PROMPT)
    async with aclosing(client.stream(root, LONG, 0.0)) as branches:
        async for branch in branches:
            with pytest.raises(InvalidArgument, match="node="):
                await client.expand(branch.node, 1, PARAMS)
            await client.release(branch.node)
            break
    with pytest.raises(NodeReleased):
        await client.expand(branch.node, 1, PARAMS)
    reading = asyncio.create_task(whole(client, root, LONG))
    await asyncio.sleep(0.02)
    await client.release(root, subtree=True)
    with pytest.raises((Cancelled, NodeReleased)):
        await reading


async def test_errors_come_as_from_an_expansion(client: Client) -> None:
    root = await client.prefill([1] * 500)
    parts = await whole(client, root, LONG)
    assert sum(len(part.tokens) for part in parts) < 300
    assert parts[-1].finish_reason == "length"
    with pytest.raises(ContextOverflow):
        await whole(client, parts[-1].node, LONG)  # type: ignore[arg-type]
    await client.release(root, subtree=True)
    with pytest.raises(NodeReleased):
        await whole(client, root, LONG)
    with pytest.raises(InvalidArgument):
        await whole(client, ClusterNode(9, 1, 1), LONG)

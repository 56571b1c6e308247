"""The host of trees, called directly: what meets what, callers that are cancelled, and books that balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.errors import NodeReleased
from serve_apps import tree_host
from serve_apps.assembly import kv_bytes_per_token
from serve_apps.decoding import Pace
from serve_apps.errors import HttpError
from serve_apps.ledger import KeyLimits, Ledger
from serve_apps.text import TextCodec
from serve_apps.tree_host import TreeHost
from serve_apps.tree_schemas import GenerateOne
from tests.serve_apps.serving import PROMPT

LONG = GenerateOne(max_tokens=400, logit_bias={"256": -100}, seed=1)
"""A generation that goes on until it is ended."""
NOTHING = {"kv_bytes": 0, "pinned_bytes": 0, "concurrent_trees": 0}
TOKENS = list(PROMPT.encode())


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("countdown", device="cpu", kv_tokens=8_192)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load("countdown")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger({"me": KeyLimits(kv_bytes=10**9)})


@pytest.fixture
async def host(engine: Engine, codec: TextCodec, ledger: Ledger) -> AsyncIterator[TreeHost]:
    """A host that may hold nothing at its end, on the backend or on the books."""
    backend = AsyncEngine(engine)
    host = TreeHost(backend, codec, ledger, kv_bytes_per_token=await kv_bytes_per_token(backend), pace=Pace(most=2))
    yield host
    await host.aclose()
    assert engine.stats().pages_held == 0
    assert ledger.held("me") == NOTHING
    await backend.aclose()


async def tree_of(host: TreeHost, ttl_s: float = 600.0) -> str:
    return (await host.create("me", TOKENS, ttl_s)).id


async def growing(host: TreeHost, tree: str, parent: int = 0) -> tuple[int, str]:
    """A node that has some tokens and is getting more, and its stream."""
    [node] = await host.fork("me", tree, parent, 1, None)
    stream = (await host.generate("me", tree, [node.id], LONG)).id
    assert (await host.read("me", tree, stream, 0, 30.0)).events
    return node.id, stream


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30.0):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_node_may_be_deleted_twice_at_once(host: TreeHost) -> None:
    tree = await tree_of(host)
    node, _ = await growing(host, tree)
    await asyncio.gather(*(host.delete_node("me", tree, node, subtree=False) for _ in range(2)))
    assert [each.id for each in (await host.view("me", tree)).nodes] == [0]


async def test_a_tree_may_be_deleted_while_a_node_of_it_is(host: TreeHost, ledger: Ledger) -> None:
    tree = await tree_of(host)
    node, _ = await growing(host, tree)
    await asyncio.gather(host.delete_node("me", tree, node, subtree=False), host.delete("me", tree))
    assert ledger.held("me") == NOTHING


@pytest.mark.parametrize("whole", [False, True])
async def test_a_delete_goes_on_where_its_caller_is_cancelled(host: TreeHost, *, whole: bool) -> None:
    tree = await tree_of(host)
    node, _ = await growing(host, tree)
    work = host.delete("me", tree) if whole else host.delete_node("me", tree, node, subtree=False)
    deleting = asyncio.create_task(work)
    await asyncio.sleep(0)
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    if not whole:
        await host.delete("me", tree)


async def test_a_host_that_ends_gives_up_what_a_sweep_has_begun_with(
    host: TreeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_host, "_SWEEP_S", 0.0)
    tree = await tree_of(host)
    await growing(host, tree)
    host._trees[tree].expires = 0.0
    await until(lambda: tree not in host._trees)


async def test_nothing_is_made_below_what_is_being_deleted(host: TreeHost) -> None:
    tree = await tree_of(host)
    top, _ = await growing(host, tree)
    await growing(host, tree, top)
    record = host._trees[tree].nodes[top]
    deleting = asyncio.create_task(host.delete_node("me", tree, top, subtree=True))
    while not record.released:
        await asyncio.sleep(0)
    with pytest.raises(HttpError, match=f"node {top} has been released"):
        await host.fork("me", tree, top, 1, None)
    await deleting
    assert [each.id for each in (await host.view("me", tree)).nodes] == [0]


async def test_what_a_deleted_node_holds_for_its_children_is_on_the_books(host: TreeHost, ledger: Ledger) -> None:
    tree = await tree_of(host)
    node, _ = await growing(host, tree)
    await host.fork("me", tree, node, 1, None)
    await host.delete_node("me", tree, node, subtree=False)
    view = await host.view("me", tree)
    assert view.nodes[node].kv_bytes == len(view.nodes[node].tokens) * view.nodes[0].kv_bytes // len(TOKENS) > 0
    assert ledger.held("me")["kv_bytes"] == view.stats.kv_bytes


async def test_a_copy_that_a_fork_needs_is_on_the_books(host: TreeHost, ledger: Ledger) -> None:
    tree = await tree_of(host)
    before = ledger.held("me")["kv_bytes"]
    [early] = await host.fork("me", tree, 0, 1, 5)
    await host.score("me", tree, early.id, [[49]])
    copied = ledger.held("me")["kv_bytes"] - before
    assert copied == 5 * before // len(TOKENS)
    assert (await host.view("me", tree)).stats.kv_bytes == before + copied
    await host.score("me", tree, early.id, [[50]])
    assert ledger.held("me")["kv_bytes"] == before + copied


async def test_a_copy_that_is_being_made_when_its_tree_goes_is_given_back(host: TreeHost) -> None:
    tree = await tree_of(host)
    [early] = await host.fork("me", tree, 0, 1, 5)
    scoring = [asyncio.create_task(host.score("me", tree, early.id, [[49]])) for _ in range(2)]
    await asyncio.sleep(0)
    await host.delete("me", tree)
    for outcome in await asyncio.gather(*scoring, return_exceptions=True):
        assert isinstance(outcome, list | HttpError | NodeReleased)


async def test_a_copy_that_does_not_fit_is_refused(host: TreeHost, ledger: Ledger) -> None:
    tree = await tree_of(host)
    [early] = await host.fork("me", tree, 0, 1, 5)
    ledger.hold("me", kv_bytes=(taken := ledger.room("me", "kv_bytes") or 0))
    with pytest.raises(HttpError, match="kv_bytes"):
        await host.score("me", tree, early.id, [[49]])
    ledger.free("me", kv_bytes=taken)


async def test_a_generation_reserves_no_more_than_the_context_holds(
    engine: Engine, codec: TextCodec, host: TreeHost, ledger: Ledger
) -> None:
    tree = await tree_of(host)
    per_token = ledger.held("me")["kv_bytes"] // len(TOKENS)
    [node] = await host.fork("me", tree, 0, 1, None)
    stream = (await host.generate("me", tree, [node.id], LONG.model_copy(update={"max_tokens": 4_096}))).id
    assert ledger.held("me")["kv_bytes"] == codec.max_context * per_token
    await host.delete_node("me", tree, node.id, subtree=False)
    await host.settled("me", tree, stream)


async def test_a_chain_may_be_longer_than_pythons_stack(host: TreeHost) -> None:
    tree, node = await tree_of(host), 0
    for _ in range(1_500):
        [below] = await host.fork("me", tree, node, 1, None)
        node = below.id
    assert (await host.pin("me", tree, node, 0.001)).kv_bytes > 0
    stream = (await host.generate("me", tree, [node], GenerateOne(max_tokens=2, seed=1))).id
    await host.settled("me", tree, stream)
    [grown] = await host.nodes("me", tree, [node])
    assert grown.tokens

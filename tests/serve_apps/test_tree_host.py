"""The host of trees, called directly: what meets what, callers that are cancelled, and books that balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.errors import ContextOverflow, InvalidArgument, NodeReleased
from dendrite.kv.node import Node
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
    deletes = [host.delete("me", tree) for _ in range(2)]
    await asyncio.gather(host.delete_node("me", tree, node, subtree=False), *deletes)
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


class Gated(AsyncEngine):
    """A backend whose prompts take until the gate is opened."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> Node:
        self.asked.set()
        await self.gate.wait()
        return await super().prefill(prompt, seed=seed)


async def test_a_copy_that_is_made_too_late_is_not_kept(engine: Engine, codec: TextCodec, ledger: Ledger) -> None:
    backend = Gated(engine)
    backend.gate.set()
    host = TreeHost(backend, codec, ledger, kv_bytes_per_token=8)
    tree = await tree_of(host)
    backend.asked.clear()
    backend.gate.clear()
    [early] = await host.fork("me", tree, 0, 1, 5)
    scoring = [asyncio.create_task(host.score("me", tree, early.id, [[49]])) for _ in range(2)]
    await backend.asked.wait()
    await host.delete("me", tree)
    assert ledger.held("me")["kv_bytes"] == 5 * 8
    backend.gate.set()
    for score in scoring:
        with pytest.raises(HttpError, match="node 0 has been released"):
            await score
    await host.aclose()
    assert ledger.held("me") == NOTHING
    assert engine.stats().pages_held == 0


async def test_what_fails_is_given_back(host: TreeHost, ledger: Ledger) -> None:
    with pytest.raises(ContextOverflow):
        await host.create("me", TOKENS * 200, 600.0)
    assert ledger.held("me") == NOTHING
    tree = await tree_of(host)
    per_token = ledger.held("me")["kv_bytes"] // len(TOKENS)
    [early] = await host.fork("me", tree, 0, 1, 5)
    ledger.hold("me", kv_bytes=(taken := (ledger.room("me", "kv_bytes") or 0) - 7 * per_token))
    before = ledger.held("me")
    with pytest.raises(HttpError, match="kv_bytes"):  # there is room for the pin, but not for what it pins
        await host.pin("me", tree, early.id, 60.0)
    assert ledger.held("me") == before
    ledger.free("me", kv_bytes=taken)


async def test_a_generation_that_fails_is_told_of_and_given_back(
    host: TreeHost, ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = await tree_of(host)
    before = ledger.held("me")
    wrong = GenerateOne(logit_bias={"99999": 1.0})
    for error, code in ((InvalidArgument, "invalid_value"), (RuntimeError, "internal_error")):
        stream = (await host.generate("me", tree, [0], wrong)).id
        with pytest.raises(error):
            await host.settled("me", tree, stream)
        page = await host.read("me", tree, stream, 0, 30.0)
        assert page.ended
        assert [event["error"]["code"] for _, event in page.events] == [code]
        assert (f"node 0 of {tree} failed" in caplog.text) == (error is RuntimeError)
        assert ledger.held("me") == before
        assert (await host.nodes("me", tree, [0]))[0].finish_reason == "error"

        def broken(plan: GenerateOne, *rest: object) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(GenerateOne, "sampling", broken)


async def test_a_tree_has_so_many_nodes_and_streams(host: TreeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_host, "MAX_NODES", 3)
    monkeypatch.setattr(tree_host, "MAX_STREAMS", 2)
    tree = await tree_of(host)
    with pytest.raises(HttpError, match="n=3: a tree has at most 3 nodes"):
        await host.fork("me", tree, 0, 3, None)
    streams = []
    for _ in range(3):
        streams.append((await host.generate("me", tree, [0], GenerateOne(max_tokens=1, seed=1))).id)
        await host.settled("me", tree, streams[-1])
    assert (await host.read("me", tree, streams[2], 0, 0.0)).ended
    with pytest.raises(HttpError, match="no stream"):
        await host.read("me", tree, streams[0], 0, 0.0)


async def test_leases_that_are_renewed_while_others_run_out_hold(
    host: TreeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_host, "_SWEEP_S", 0.0)
    first, second, third = [await tree_of(host) for _ in range(3)]
    await growing(host, first)
    for tree in (first, second, third):
        host._trees[tree].expires = 0.0
    while first in host._trees:
        await asyncio.sleep(0)
    await host.renew("me", second, 600.0)
    await host.delete("me", third)
    last = await tree_of(host)
    host._trees[last].expires = 0.0
    await until(lambda: last not in host._trees)
    for tree, code in ((first, "lease_expired"), (third, "tree_not_found")):
        with pytest.raises(HttpError) as caught:
            await host.view("me", tree)
        assert caught.value.code == code
    assert (await host.view("me", second)).expires_in_s > 500.0


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

"""The backend's nodes that a search holds: their KV pages, and how they come back after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dendrite.errors import NodeReleased
from dendrite.search.backend import Backend, NodeRef


@dataclass(slots=True)
class _Held:
    parent: int | None
    pages: int
    uses: int
    """1 while the search itself holds it, and 1 for each child whose KV continues this node's."""
    children: list[int] = field(default_factory=list)
    held: bool = True


class Holdings:
    """Which thoughts have a node on the backend, and the pages that these and their ancestors own.

    A released node's pages stay as long as a child needs them, as in the backend. A thought that came from a record of
    an earlier run has no node until it is expanded: then it is rebuilt from its tokens, as the root of a tree of its
    own.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._refs: dict[int, NodeRef] = {}
        self._rebuilding: dict[int, asyncio.Task[NodeRef]] = {}
        self._roots: list[NodeRef] = []
        self._held: dict[int, _Held] = {}
        self.pages = 0
        """KV pages that the search's tree owns."""

    def root(self, id: int, ref: NodeRef | None, pages: int) -> None:
        """Take a root in; its node, if there is one, is released with all below it by `close`."""
        if ref is not None:
            self._refs[id] = ref
            self._roots.append(ref)
        self._held[id] = _Held(None, pages, 1)
        self.pages += pages

    def child(self, id: int, parent: int, ref: NodeRef | None, pages: int) -> None:
        """Take a child in, with the pages that it owns; without a node if it comes from a record."""
        if ref is not None:
            self._refs[id] = ref
        self._held[id] = _Held(parent, pages, 1)
        self.pages += pages
        above = self._held.get(parent)
        if above is not None:
            above.uses += 1
            above.children.append(id)

    async def ref(self, id: int, tokens: Callable[[], Sequence[int]], seed: int) -> NodeRef:
        """The node of a thought; built from the `tokens` of its whole path, prompt included, if it never had one.

        Raises:
            NodeReleased: it has been given up.
        """
        if id in self._refs:
            return self._refs[id]
        if id not in self._held or not self._held[id].held:
            raise NodeReleased(0, id)
        if id not in self._rebuilding:
            self._rebuilding[id] = asyncio.create_task(self._rebuild(id, tokens(), seed))
        return await asyncio.shield(self._rebuilding[id])

    async def _rebuild(self, id: int, tokens: Sequence[int], seed: int) -> NodeRef:
        ref = await self._backend.prefill(tokens, seed=seed)
        self._refs[id] = ref
        self._roots.append(ref)
        return ref

    def drop(self, id: int, *, subtree: bool) -> list[NodeRef]:
        """Give a thought's node up, with `subtree` all below it; returns the nodes to release. Idempotent."""
        dropped = [self._drop_one(each) for each in (self._below(id) if subtree else [id])]
        return [ref for ref in dropped if ref is not None]

    def _below(self, id: int) -> list[int]:
        """A thought and those below it that are still on the books, parents first."""
        found = [id]
        for each in found:
            held = self._held.get(each)
            found.extend(held.children if held is not None else ())
        return found

    def _drop_one(self, id: int) -> NodeRef | None:
        held = self._held.get(id)
        if held is not None and held.held:
            held.held = False
            self._forgo(id)
        return self._refs.pop(id, None)

    def _forgo(self, id: int | None) -> None:
        """Count one use of a node less, and its pages as free with the last; then likewise above it."""
        while id is not None and (held := self._held.get(id)) is not None:
            held.uses -= 1
            if held.uses:
                return
            self.pages -= held.pages
            del self._held[id]
            id = held.parent

    async def close(self) -> None:
        """Release every tree; waits for what is being rebuilt.

        Raises:
            Exception: the first that the backend raised for one of them, once all others have been released.
        """
        await asyncio.gather(*self._rebuilding.values(), return_exceptions=True)
        releases = (self._backend.release(root, subtree=True) for root in self._roots)
        for outcome in await asyncio.gather(*releases, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

"""What the routes ask of whatever holds the trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serve_apps.events import Page
from serve_apps.tree_schemas import GenerateOne, Lease, NodeView, Pinned, StreamView, TreeView


class Trees(Protocol):
    """Trees by id. One that is somebody else's is not there."""

    async def create(self, owner: str, prompt: Sequence[int], ttl_s: float) -> TreeView:
        """Prefill a prompt as the root of a tree."""
        ...

    async def view(self, owner: str, id: str) -> TreeView:
        """The whole tree."""
        ...

    async def nodes(self, owner: str, id: str, nodes: Sequence[int]) -> list[NodeView]:
        """Some of its nodes."""
        ...

    async def fork(self, owner: str, id: str, node: int, n: int, at: int | None) -> list[NodeView]:
        """Make children."""
        ...

    async def generate(self, owner: str, id: str, nodes: Sequence[int], plan: GenerateOne) -> StreamView:
        """Begin to extend nodes."""
        ...

    async def settled(self, owner: str, id: str, stream: str) -> None:
        """Return when a stream's nodes have ended; raise what they failed with."""
        ...

    async def read(self, owner: str, id: str, stream: str, after: int, wait_s: float) -> Page:
        """Events of a stream."""
        ...

    async def score(self, owner: str, id: str, node: int, continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of continuations."""
        ...

    async def renew(self, owner: str, id: str, ttl_s: float) -> Lease:
        """Extend the lease."""
        ...

    async def pin(self, owner: str, id: str, node: int, ttl_s: float) -> Pinned:
        """Hold a node's path."""
        ...

    async def delete_node(self, owner: str, id: str, node: int, *, subtree: bool) -> None:
        """Give up a node, with `subtree` all below it. What is generating there is cancelled."""
        ...

    async def delete(self, owner: str, id: str) -> None:
        """Give up a tree."""
        ...

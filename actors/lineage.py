"""What a client has made: the tokens of its nodes, parent-linked, and where their KV lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from actors.documents import Document
from actors.refs import ClusterNode
from dendrite.errors import NodeReleased, UnknownNode

MOST_TREES = 4_096
"""Trees of which it is known how many nodes they have had: those that have grown last. A client may make any number."""


@dataclass(slots=True, eq=False)
class Copy:
    """A node's KV on a worker, under the name that the worker knows it by.

    It went when the worker was lost, if `epoch` is not the worker's any more. `open` until the worker has been told to
    release it. `rebuilt` copies were made from tokens, and may lie in another tree of the worker than their parent's.
    """

    at: ClusterNode
    epoch: int
    rebuilt: bool = False
    open: bool = True


@dataclass(slots=True, eq=False)
class Segment:
    """A node as its holder knows it: `name` is for good, the copies come and go.

    `tokens` are its own; `document` is what they end in, if that is under a grammar. `held` until its holder releases
    it; it stays while it has children, or a call uses it (`pins`). `cut` once it was released with all below it.
    `growing` while a worker generates it, so that its tokens are not all there.
    """

    name: ClusterNode
    parent: Segment | None
    tokens: tuple[int, ...]
    seed: int | None = None
    document: Document | None = None
    held: bool = True
    cut: bool = False
    growing: bool = False
    pins: int = 0
    children: dict[ClusterNode, Segment] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)

    @property
    def path(self) -> list[Segment]:
        """The segments from the root to this one."""
        found, at = [self], self.parent
        while at is not None:
            found.append(at)
            at = at.parent
        return found[::-1]

    @property
    def path_tokens(self) -> tuple[int, ...]:
        """All tokens from the root to the end of this one."""
        return tuple(token for segment in self.path for token in segment.tokens)

    @property
    def gone(self) -> bool:
        """Whether nobody needs it any more."""
        return not self.held and not self.children and not self.pins

    @property
    def is_anchor(self) -> bool:
        """Whether a rebuild of what is below it makes it a node of its own, to be shared."""
        return self.held or len(self.children) > 1

    def below(self) -> Iterator[Segment]:
        """This segment and its descendants, parents first."""
        waiting = [self]
        while waiting:
            segment = waiting.pop()
            yield segment
            waiting.extend(segment.children.values())


@dataclass(frozen=True, slots=True)
class Release:
    """A message that is due: the worker of `copy` shall give it up, with `subtree` all below it."""

    copy: Copy
    subtree: bool = False


class Lineage:
    """Every node that this client holds, and every released one that a held node descends from."""

    def __init__(self) -> None:
        self._segments: dict[ClusterNode, Segment] = {}
        self._seen: dict[int, int] = {}  # nodes a tree has had, the tree that has grown last at the end

    def __len__(self) -> int:
        return len(self._segments)

    def add(
        self,
        copy: Copy,
        tokens: tuple[int, ...],
        parent: Segment | None = None,
        seed: int | None = None,
        document: Document | None = None,
    ) -> Segment:
        """Note a new node, which bears the name of its first copy. `seed` is of the sampling of a root's tree."""
        segment = Segment(copy.at, parent, tokens, seed, document, copies=[copy])
        self._segments[copy.at] = segment
        self._see(copy.at)
        if parent is not None:
            parent.children[copy.at] = segment
        return segment

    def find(self, name: ClusterNode) -> Segment | None:
        """The segment of a node that is held, or has held descendants; None if there is no such."""
        return self._segments.get(name)

    def get(self, name: ClusterNode) -> Segment:
        """The segment of a held node.

        Raises:
            NodeReleased: it was held, and has been released.
            UnknownNode: it was never held, or so long ago that nothing is known of its tree.
        """
        segment = self._segments.get(name)
        if segment is not None and segment.held:
            return segment
        if segment is not None or 0 <= name.node < self._seen.get(name.tree, 0):
            raise NodeReleased(name.tree, name.node)
        raise UnknownNode(name.tree, name.node)

    def release(self, name: ClusterNode, *, subtree: bool) -> list[Release]:
        """Give a node up, with `subtree` all held ones below it too, and return what workers are to be told."""
        segment = self._segments.get(name)
        if segment is None:
            return []
        if not subtree:
            was_held, segment.held = segment.held, False
            due = [Release(copy) for copy in _closed(segment)] if was_held else []
            return due + self.prune(segment)
        due = []
        leaves = []
        for below in segment.below():
            below.held, below.cut = False, True
            due += [Release(copy, subtree=True) for copy in below.copies if below is segment or copy.rebuilt]
            _closed(below)
            if not below.children:
                leaves.append(below)
        for leaf in leaves:
            due += self.prune(leaf)
        return due

    def prune(self, segment: Segment) -> list[Release]:
        """Forget a segment that nobody needs, then its ancestors that this leaves so; returns what is to be told."""
        due = []
        at: Segment | None = segment
        while at is not None and at.gone and self._segments.get(at.name) is at:
            due += [Release(copy) for copy in _closed(at)]
            del self._segments[at.name]
            if at.parent is not None:
                del at.parent.children[at.name]
            at = at.parent
        return due

    def _see(self, name: ClusterNode) -> None:
        self._seen[name.tree] = max(self._seen.pop(name.tree, 0), name.node + 1)
        if len(self._seen) > MOST_TREES:
            del self._seen[next(iter(self._seen))]


def _closed(segment: Segment) -> list[Copy]:
    """The open copies of a segment, which are closed with this."""
    copies = [copy for copy in segment.copies if copy.open]
    for copy in copies:
        copy.open = False
    return copies
